// The stage beside the clip: previews during the translation, then the result, which plays in sync with the original.
// `props.value` is a stage value of video_tab.py: {state, text, run, progress, preview, path, offset}.

const find = (selector) => element.querySelector(selector);
const stage = find(".stage");
const result = find(".result");
const both = find(".both");
const MAX_DRIFT = 0.15; // seconds between the two videos that nobody notices

let offset = 0; // start of the result in the original, in seconds
let run = null; // the translation that is shown
let ended = null; // the last one that gave way to another clip or an example
const original = () => document.querySelector("#clip video");
const inSync = () => !result.hidden && original()?.currentSrc;

function show() {
  const value = props.value;
  if (value.run !== null && value.run === ended) return; // was on its way when the clip changed
  if (value.run === null) ended = run ?? ended;
  run = value.run;
  if (value.state === "waiting" && stage.dataset.state !== "waiting") stage.scrollIntoView({ block: "nearest" });
  stage.dataset.state = value.state; // empty, waiting, running, done, error
  find(".text").setAttribute("aria-live", value.state === "running" ? "off" : "polite"); // not the time left
  find(".text").textContent = value.text;
  find(".empty").hidden = Boolean(value.preview || value.path);
  const bar = find("progress");
  bar.hidden = value.progress === null;
  bar.value = value.progress ?? 0;
  const preview = find(".preview");
  preview.hidden = !value.preview;
  if (value.preview) preview.src = value.preview;
  showResult(value);
}

function showResult(value) {
  const url = value.path ? `${window.gradio_config?.root ?? ""}/gradio_api/file=${encodeURI(value.path)}` : "";
  result.hidden = find(".tools").hidden = !url;
  offset = value.offset;
  if (result.getAttribute("src") === url) return;
  if (!url) {
    result.pause();
    result.removeAttribute("src");
    return result.load();
  }
  result.src = url;
  find(".download").href = url;
  find(".download").download = value.path.split("/").pop();
  original()?.pause();
}

// Sets the other video to the leader's time. Videos in sync are left alone: their events would trigger each other.
function align(leader) {
  const follower = leader === result ? original() : result;
  const time = Math.max(0, leader.currentTime + (leader === result ? offset : -offset));
  if (Math.abs(follower.currentTime - time) > MAX_DRIFT) follower.currentTime = time;
  return follower;
}

function follow(event) {
  const leader = event.target;
  if (!(leader === result || leader === original()) || !inSync()) return;
  if (event.type === "timeupdate") return leader === result && !result.paused ? align(result) : undefined;
  const follower = align(leader);
  if (event.type === "play") {
    original().muted = true; // the sound is in the result
    if (follower.paused) follower.play().catch(() => {}); // a clip that this browser cannot play
  } else if (event.type === "pause" && !follower.paused && !leader.ended) follower.pause();
  both.textContent = result.paused ? "Play both" : "Pause both";
}

// Media events do not bubble, and Gradio may replace the original's element: listen in the capture phase.
for (const type of ["play", "pause", "seeked", "timeupdate"]) document.addEventListener(type, follow, true);
both.addEventListener("click", () => (result.paused ? result.play() : result.pause()));
watch("value", show);
show();
