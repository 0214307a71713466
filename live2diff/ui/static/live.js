// The Live tab: its controls, states and messages. `element` is the component. worker.js handles frames; the server's
// side is live_session.py.

const WARMUP_FRAMES = 8;
const NOTICE_TIME = 4000; // milliseconds that a notice over the running picture stays
const RATE_WINDOW = 2000; // milliseconds over which the numbers are measured

const find = (selector) => element.querySelector(selector);
const stage = find(".stage");
const frame = find(".screen");
const canvas = find("canvas");
const video = find("video");
const notice = find(".notice");
const messageLine = find(".message");
const prompt = find(".prompt input");
const lora = find(".lora input"); // for styles with LoRAs: a factor for their weights
const sources = find(".source select");
const strength = find(".strength input");
const screen = makeScreen(canvas, stage);
const workerAddress = URL.createObjectURL(new Blob([WORKER_SOURCE], { type: "text/javascript" }));

let run = 0; // increases with every start and stop: events of an older run are ignored
let worker = null;
let track = null;
let sourceInUse = ""; // as in the list of sources
let endFeed = () => {};
let recording = null;
let isOpen = false; // whether the server has a stream for this page
let paused = false;
let deadline = null; // end of the turn
let isDefaultStrength = true; // the style's own
let accepted = find(".styles input:checked").value; // the last style that the server accepted
let shown = []; // results of the last RATE_WINDOW: {at, delay}
let captured = []; // the camera's frames: {at, count}

const selected = (name) => find(`.${name} input:checked`).value;

const settings = () => ({
  style: selected("styles"),
  prompt: prompt.value,
  lora_scale: Number(lora.value),
  steps: Number(find(".steps select").value) || null,
  strength: isDefaultStrength ? null : Number(strength.value),
  seed: Math.min(2147483647, Math.max(0, Math.trunc(Number(find(".seed input").value)) || 0)),
  ...mixSettings(),
});

function socketAddress() {
  const root = new URL(window.gradio_config?.root ?? ".", location.href).pathname.replace(/\/$/, "");
  return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}${root}/live-socket`;
}

function showMessage(text) {
  messageLine.textContent = text;
  messageLine.hidden = !text;
}

function setState(state, text = "") {
  stage.dataset.state = state; // idle, starting, waiting, warmup, running, cut, over
  stage.dataset.empty = screen.isEmpty ? "yes" : "no";
  if (video.srcObject) showCamera(screen.isEmpty);
  notice.textContent = paused && isOpen ? "Paused" : text;
  for (const name of ["stop", "pause", "restart"]) find(`.${name}`).disabled = state === "idle";
  find(".still").disabled = find(".pip").disabled = screen.isEmpty;
  find(".record").disabled = screen.isEmpty && !recording;
  find(".pause").disabled ||= !isOpen && state !== "over";
  find(".restart").disabled ||= state !== "running";
  find(".pause").textContent = paused || state === "over" ? "Resume" : "Pause";
  find(".pause").setAttribute("aria-pressed", paused);
}

const clearNotice = () => stage.dataset.state === "running" && setState("running");

// Where the worker reads the camera itself, a hidden video need not play.
function showCamera(visible) {
  if (visible || !readsCamera) video.play().catch(() => {}); // the track may have ended
  else video.pause();
}

const warmupText = (count) => `Warming up ${count} / ${WARMUP_FRAMES}`;

function queueText(position, seconds) {
  const ending = { one: "st", two: "nd", few: "rd" };
  const ordinal = ending[new Intl.PluralRules("en", { type: "ordinal" }).select(position)] ?? "th";
  const wait = seconds < 90 ? `${Math.max(5, Math.round(seconds / 5) * 5)} s` : `${Math.round(seconds / 60)} min`;
  return `You are ${position}${ordinal} in line, about ${wait}`;
}

function onServerMessage(message) {
  noteForCues(message);
  if ("started" in message) {
    isOpen = true;
    accepted = selected("styles");
    worker.postMessage({ flow: { on: shouldSend(), reset: true } });
    if (message.gpu_session) openGpuSession(message.gpu_session);
    showMessage(ignoredText(message.started));
    setState("warmup", warmupText(1));
  } else if ("waiting" in message) {
    isOpen = false;
    updateFlow();
    screen.clear();
    setState("waiting", queueText(message.waiting, message.seconds));
  } else if ("loading" in message) {
    notice.textContent = `Downloading “${styleTitle(message.loading)}”`;
  } else if ("updated" in message) {
    accepted = message.updated;
    clearNotice();
    showMessage(ignoredText(message.ignored));
  } else if ("refused" in message) {
    accepted = message.style;
    applyLook({ ...message.settings, view: selected("views") });
    rememberLook();
    clearNotice();
    showMessage(message.refused);
  } else if ("time_left" in message) {
    deadline = message.time_left === null ? null : performance.now() + message.time_left * 1000;
  } else if ("over" in message) {
    isOpen = false;
    deadline = null;
    worker.postMessage({ flow: { on: false, reset: true } });
    showMessage(`${message.over} You are in line again.`);
  } else if ("gpu_session_over" in message) {
    const goesOn = message.again && shouldSend() && stage.dataset.state === "running";
    isOpen = paused = false;
    deadline = null;
    worker.postMessage({ flow: { on: false, reset: true } });
    setState("over", goesOn ? "Reconnecting" : message.gpu_session_over);
    if (goesOn) restartStream();
  } else if ("moved" in message) {
    notice.textContent = "Moved to another GPU";
    setTimeout(clearNotice, NOTICE_TIME);
  } else if ("error" in message) {
    stop(message.error);
  }
}

// The worker connects again; the last image stays.
function onCut() {
  isOpen = false;
  deadline = null;
  setState("cut", "Reconnecting");
}

// On ZeroGPU, a GPU session must begin with a click of the viewer: see zerogpu/button.py.
function openGpuSession(key) {
  window.live2diffVisit = key;
  const button = document.querySelector("#visit");
  (button?.querySelector("button") ?? button)?.click();
}

const ignoredText = (words) => (words ? `The prompt is too long. Not read: “${words}”` : "");

function onResult({ result, original, captured: capturedAt }) {
  if (paused || !isOpen) {
    result.close();
    original.close();
    return;
  }
  noteSteadiness(result, original);
  screen.show(result, original);
  if (stage.dataset.state !== "running") setState("running");
  recording?.draw();
  const at = performance.now();
  shown.push({ at, delay: performance.timeOrigin + at - capturedAt });
}

function showNumbers() {
  const since = performance.now() - RATE_WINDOW;
  shown = shown.filter((result) => result.at > since);
  captured = captured.filter((part) => part.at > since);
  const [first, last] = [shown[0]?.at, shown.at(-1)?.at];
  const delays = shown.map((result) => result.delay).sort((a, b) => a - b);
  const total = captured.reduce((sum, part) => sum + part.count, 0);
  const rate = last > first ? ((shown.length - 1) * 1000) / (last - first) : 0;
  find(".fps").textContent = rate ? rate.toFixed(1) : "–";
  find(".delay").textContent = delays.length ? time(delays[delays.length >> 1]) : "–";
  const dropped = total && shown.length ? Math.max(0, 1 - shown.length / total) : null;
  find(".dropped").textContent = dropped === null ? "–" : `${Math.round(dropped * 100)} %`;
  showMeter(rate);
  const left = deadline === null ? null : Math.max(0, Math.round((deadline - performance.now()) / 1000));
  find(".left").textContent = left === null ? "" : clock(left);
  if (recording) find(".record").textContent = `Finish ${clock(Math.floor(recording.seconds()))}`;
}

const time = (milliseconds) =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

// Called every half second while the camera runs.
function tick({ seen: count, ...measured }) {
  timing = measured;
  if (element.offsetParent === null && !isClean) return stop(); // another tab of the page is open
  captured.push({ at: performance.now(), count });
  showNumbers();
}

const shouldSend = () => isOpen && !paused && (!document.hidden || Boolean(document.pictureInPictureElement));

const updateFlow = () => worker?.postMessage({ flow: { on: shouldSend() } });

// Opens `source` and feeds it into the stream, in place of the last one.
async function useSource(source) {
  const thisRun = run;
  const opened = await openSource(source).catch((error) => {
    if (error.cause?.name !== "NotReadableError" || !track) throw error;
    endFeed(); // many phones have one camera open at a time
    track.stop();
    return openSource(source);
  });
  if (thisRun !== run) return opened.stop();
  endFeed();
  track?.stop();
  track = opened;
  track.onended = () =>
    stop(source === "screen" ? "The screen is no longer shared." : "The camera was disconnected.");
  video.srcObject = new MediaStream([track]);
  const { deviceId } = track.getSettings();
  const isOther = sourceInUse !== (sourceInUse = source !== "screen" && deviceId ? deviceId : source);
  if (isOther) find(".mirror").checked = isMirrored(source, track);
  showMirror();
  await video.play();
  if (thisRun !== run) return;
  if (screen.isEmpty) stage.style.setProperty("--aspect", `${video.videoWidth / video.videoHeight}`);
  endFeed = feed(track, video, worker);
  listSources(sources, sourceInUse);
}

async function start() {
  const thisRun = ++run;
  startSettings = null;
  showMessage("");
  screen.clear();
  setState("starting", "Waiting for the camera. Allow it if your browser asks.");
  worker = new Worker(workerAddress);
  worker.onmessage = ({ data }) => {
    if (data.text) onServerMessage(data.text);
    else if (data.result) onResult(data);
    else if (data.collected) setState("warmup", warmupText(data.collected + 1));
    else if (data.counted) tick(data.counted);
    else if (data.opened) worker.postMessage({ send: { start: settings() } });
    else if (data.cut) onCut();
    else if ("closed" in data) stop(data.closed, "Try again");
  };
  worker.postMessage({ options: { side: Number(stage.dataset.side), skipSimilar: find(".similar").checked } });
  try {
    await useSource(sources.value || "user");
  } catch (error) {
    return thisRun === run ? stop(error.message) : undefined;
  }
  if (thisRun !== run) return;
  setState("starting", "Waiting for the server");
  worker.postMessage({ open: socketAddress() });
}

// Ends the visit, and the worker with it.
function stop(text = "", label = "Start camera") {
  if (recording) finishRecording();
  run += 1;
  if (worker) worker.onmessage = null;
  worker?.postMessage({ stop: true });
  worker = null;
  find(".start").textContent = label;
  endFeed();
  endFeed = () => {};
  track?.stop();
  track = null;
  video.srcObject = null;
  isOpen = paused = false;
  deadline = null;
  shown = [];
  captured = [];
  screen.clear();
  showMessage(text);
  setState("idle");
  showNumbers();
}

const timers = new Map(); // action -> timer: nothing is sent while the viewer types or drags a slider
function debounce(milliseconds, action) {
  clearTimeout(timers.get(action));
  timers.set(action, setTimeout(() => worker && action(), milliseconds));
}

// Applies all settings but the seed to the running stream.
const update = () => worker.postMessage({ send: { update: settings(), ...transition() } });

// Opens another stream with the current settings; the last image stays.
function restartStream() {
  if (!isOpen) return worker.postMessage({ send: { start: settings() } });
  isOpen = paused = false;
  worker.postMessage({ flow: { on: false, reset: true } });
  worker.postMessage({ send: { start: settings() } });
  setState("warmup", "Starting again");
}

// Shows what belongs to the style: the weight of its LoRAs, and a sample until the camera runs.
function showStyle() {
  const { loras, sample } = find(".styles input:checked").dataset;
  find(".lora").hidden = !loras;
  find(".sample").hidden = !sample;
  find(".sample").src = sample;
}

function showView() {
  stage.dataset.view = selected("views");
  screen.set({ view: selected("views") });
}

function showMirror() {
  const mirror = find(".mirror").checked;
  stage.dataset.mirror = mirror ? "yes" : "no";
  screen.set({ mirror });
}

function showStrength() {
  find(".strength output").textContent = isDefaultStrength ? "style default" : Number(strength.value).toFixed(2);
}

async function finishRecording() {
  const finished = recording;
  recording = null;
  find(".record").textContent = "Record";
  find(".record").setAttribute("aria-pressed", "false");
  save(await finished.finish(), fileName(accepted, recordingKind()[1]));
}

function toggleRecording() {
  if (recording) return finishRecording();
  recording = startRecording(canvas);
  find(".record").setAttribute("aria-pressed", "true");
  showNumbers();
}

const on = (selector, event, action) => find(selector).addEventListener(event, action);

on(".start", "click", start);
on(".stop", "click", () => stop());
on(".pause", "click", () => {
  if (stage.dataset.state === "over") return restartStream();
  paused = !paused;
  updateFlow();
  setState(stage.dataset.state);
});
on(".restart", "click", () => worker?.postMessage({ send: { restart: true } }));
on(".record", "click", toggleRecording);
on(".still", "click", () => canvas.toBlob((blob) => save(blob, fileName(accepted, "png")), "image/png"));
on(".full", "click", () => (document.fullscreenElement ? document.exitFullscreen() : frame.requestFullscreen()));
on(".views", "change", showView);
on(".split", "input", () => {
  const split = find(".split").value / 100;
  frame.style.setProperty("--split", split);
  screen.set({ split });
});
on(".styles", "change", () => {
  showStyle();
  clearNotice();
  debounce(0, update);
});
on(".lora", "input", () => debounce(150, update));
on(".prompt", "input", () => debounce(400, update));
on(".mirror", "change", showMirror);
on(".similar", "change", () => worker?.postMessage({ options: { skipSimilar: find(".similar").checked } }));
on(".strength", "input", () => {
  isDefaultStrength = false;
  showStrength();
  debounce(150, update);
});
on(".steps", "change", () => debounce(0, update));
on(".seed", "input", () => debounce(400, restartStream));
on(".own", "click", () => {
  isDefaultStrength = true;
  find(".steps select").value = "";
  showStrength();
  debounce(0, update);
});
on(".source", "change", async () => {
  if (!worker) return;
  const thisRun = run;
  try {
    await useSource(sources.value);
    if (thisRun === run) restartStream(); // the frames may have another aspect
  } catch (error) {
    if (thisRun !== run) return;
    if (track.readyState === "ended") return stop(error.message);
    sources.value = sourceInUse;
    showMessage(error.message);
  }
});
navigator.mediaDevices?.addEventListener("devicechange", () => listSources(sources, sources.value));
document.addEventListener("visibilitychange", updateFlow);
addEventListener("pagehide", () => worker && stop());
addEventListener("beforeunload", (event) => recording && event.preventDefault()); // the recording would be lost

find(".record").hidden = !recordingKind();
find(".full").hidden = !document.fullscreenEnabled;
showStyle();
showMirror();
listSources(sources);
setState("idle");
