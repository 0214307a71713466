// What happens to a clip, beside the clip: the preview while it is translated, then the result, which plays in step with
// the original. `props.value` is what video_tab.py says of it: {state, text, share, picture, path, offset}.

const find = (selector) => element.querySelector(selector);
const stage = find(".stage");
const result = find(".result");
const both = find(".both");
const FAR_APART = 0.15; // seconds between the two that nobody sees

let offset = 0; // where the result begins in the original, in seconds
const original = () => document.querySelector("#clip video");
const inStep = () => !result.hidden && original()?.currentSrc;

function show() {
  const told = props.value;
  if (told.state === "waiting" && stage.dataset.state !== "waiting") stage.scrollIntoView({ block: "nearest" });
  stage.dataset.state = told.state; // empty, waiting, running, done, error
  find(".text").textContent = told.text;
  find(".empty").hidden = Boolean(told.picture || told.path);
  const bar = find("progress");
  bar.hidden = told.share === null;
  bar.value = told.share ?? 0;
  const picture = find(".picture");
  picture.hidden = !told.picture;
  if (told.picture) picture.src = told.picture;
  showResult(told);
}

function showResult(told) {
  const url = told.path ? `${window.gradio_config?.root ?? ""}/gradio_api/file=${encodeURI(told.path)}` : "";
  result.hidden = find(".tools").hidden = !url;
  offset = told.offset;
  if (result.getAttribute("src") === url) return;
  if (!url) {
    result.pause();
    result.removeAttribute("src");
    return result.load();
  }
  result.src = url;
  find(".download").href = url;
  find(".download").download = told.path.split("/").pop();
  original()?.pause();
}

// One drives the other. What is in step already is left alone, so that the answer to an answer ends there.
function align(leader) {
  const follower = leader === result ? original() : result;
  const time = Math.max(0, leader.currentTime + (leader === result ? offset : -offset));
  if (Math.abs(follower.currentTime - time) > FAR_APART) follower.currentTime = time;
  return follower;
}

function follow(event) {
  const leader = event.target;
  if (!(leader === result || leader === original()) || !inStep()) return;
  if (event.type === "timeupdate") return leader === result && !result.paused ? align(result) : undefined;
  const follower = align(leader);
  if (event.type === "play") {
    original().muted = true; // the sound is in the result
    if (follower.paused) follower.play().catch(() => {}); // a clip that this browser cannot play
  } else if (event.type === "pause" && !follower.paused && !leader.ended) follower.pause();
  both.textContent = result.paused ? "Play both" : "Pause both";
}

// Media events do not bubble, and Gradio replaces the original's element as it likes: listen on the way down.
for (const type of ["play", "pause", "seeked", "timeupdate"]) document.addEventListener(type, follow, true);
both.addEventListener("click", () => (result.paused ? result.play() : result.pause()));
watch("value", show);
show();
