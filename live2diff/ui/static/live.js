// The Live tab: what the buttons do, and what is said. `element` is the component. The work on the pictures is done in
// worker.js, and the server's side is live_socket.py.

const WARMUP_FRAMES = 8;
const RATE_WINDOW = 2000; // milliseconds over which the numbers are taken

const find = (selector) => element.querySelector(selector);
const stage = find(".stage");
const frame = find(".screen");
const canvas = find("canvas");
const video = find("video");
const notice = find(".notice");
const message = find(".message");
const prompt = find(".prompt input");
const lora = find(".lora input"); // for styles that have LoRAs: what their weights are multiplied by
const sources = find(".source select");
const strength = find(".strength input");
const screen = makeScreen(canvas, stage);
const workerAddress = URL.createObjectURL(new Blob([WORKER_SOURCE], { type: "text/javascript" }));

let run = 0; // rises with every start and stop: what belongs to an older run is dropped
let worker = null;
let track = null;
let endFeed = () => {};
let recording = null;
let isOpen = false; // whether the server has a stream for us
let paused = false;
let deadline = null; // when the turn is over
let ownStrength = true; // as the style has it
let accepted = find(".styles input:checked").value; // the style that the server took last
let shown = []; // of the pictures of the last RATE_WINDOW: {at, delay}
let seen = []; // of the camera's frames: {at, count}

const chosen = (name) => find(`.${name} input:checked`).value;

const settings = () => ({
  style: chosen("styles"),
  prompt: prompt.value,
  lora_scale: Number(lora.value),
  steps: Number(find(".steps select").value) || null,
  strength: ownStrength ? null : Number(strength.value),
  seed: Math.trunc(Number(find(".seed input").value)) || 0,
});

function socketAddress() {
  const root = new URL(window.gradio_config?.root ?? ".", location.href).pathname.replace(/\/$/, "");
  return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}${root}/live-socket`;
}

function say(text) {
  message.textContent = text;
  message.hidden = !text;
}

function setState(state, text = "") {
  stage.dataset.state = state; // idle, starting, waiting, warmup, running, over
  stage.dataset.empty = screen.isEmpty ? "yes" : "no";
  if (video.srcObject) showCamera(screen.isEmpty);
  stage.dataset.paused = paused ? "yes" : "no";
  notice.textContent = paused ? "Paused" : text;
  for (const name of ["stop", "pause", "restart"]) find(`.${name}`).disabled = state === "idle";
  find(".still").disabled = screen.isEmpty;
  find(".record").disabled = screen.isEmpty && !recording;
  find(".pause").disabled ||= !isOpen && state !== "over";
  find(".restart").disabled ||= state !== "running";
  find(".pause").textContent = paused || state === "over" ? "Resume" : "Pause";
  find(".pause").setAttribute("aria-pressed", paused);
}

// Where the worker reads the camera by itself, the video need not be shown to anybody while it is hidden.
function showCamera(visible) {
  if (visible || !readsCamera) video.play().catch(() => {}); // ended meanwhile
  else video.pause();
}

const gathering = (count) => `Warming up ${count} / ${WARMUP_FRAMES}`;

function inLine(position, seconds) {
  const ending = { one: "st", two: "nd", few: "rd" };
  const ordinal = ending[new Intl.PluralRules("en", { type: "ordinal" }).select(position)] ?? "th";
  const wait = seconds < 90 ? `${Math.max(5, Math.round(seconds / 5) * 5)} s` : `${Math.round(seconds / 60)} min`;
  return `You are ${position}${ordinal} in line, about ${wait}`;
}

function hear(told) {
  if ("started" in told) {
    isOpen = true;
    accepted = chosen("styles");
    worker.postMessage({ flow: { on: wanted(), anew: true } });
    if (told.visit) borrow(told.visit);
    say(ignoredWords(told.started));
    setState("warmup", gathering(1));
  } else if ("waiting" in told) {
    isOpen = false;
    updateFlow();
    screen.clear();
    setState("waiting", inLine(told.waiting, told.seconds));
  } else if ("updated" in told) {
    accepted = told.updated;
    say(ignoredWords(told.ignored));
  } else if ("refused" in told) {
    accepted = told.style;
    find(`.styles input[value="${CSS.escape(accepted)}"]`).checked = true;
    showStyle();
    say(told.refused);
  } else if ("time_left" in told) {
    deadline = told.time_left === null ? null : performance.now() + told.time_left * 1000;
  } else if ("over" in told) {
    isOpen = false;
    deadline = null;
    worker.postMessage({ flow: { on: false, anew: true } });
    say(`${told.over} You are in line again.`);
  } else if ("visit_over" in told) {
    isOpen = paused = false;
    deadline = null;
    worker.postMessage({ flow: { on: false, anew: true } });
    setState("over", told.visit_over);
  } else if ("error" in told) {
    stop(told.error);
  }
}

// Where a GPU is lent for each visit, it is lent to whoever clicks: see visit_button.py.
function borrow(key) {
  window.live2diffVisit = key;
  const visit = document.querySelector("#visit");
  (visit?.querySelector("button") ?? visit)?.click();
}

const ignoredWords = (words) => (words ? `The prompt is too long. Not read: “${words}”` : "");

function onPicture({ picture, original, captured }) {
  if (paused || !isOpen) {
    picture.close();
    original.close();
    return;
  }
  screen.show(picture, original);
  if (stage.dataset.state !== "running") setState("running");
  recording?.draw();
  const at = performance.now();
  shown.push({ at, delay: performance.timeOrigin + at - captured });
}

function showNumbers() {
  const since = performance.now() - RATE_WINDOW;
  shown = shown.filter((picture) => picture.at > since);
  seen = seen.filter((part) => part.at > since);
  const [first, last] = [shown[0]?.at, shown.at(-1)?.at];
  const delays = shown.map((picture) => picture.delay).sort((a, b) => a - b);
  const came = seen.reduce((sum, part) => sum + part.count, 0);
  find(".fps").textContent = last > first ? (((shown.length - 1) * 1000) / (last - first)).toFixed(1) : "–";
  find(".delay").textContent = delays.length ? time(delays[delays.length >> 1]) : "–";
  const dropped = came && shown.length ? Math.max(0, 1 - shown.length / came) : null;
  find(".dropped").textContent = dropped === null ? "–" : `${Math.round(dropped * 100)} %`;
  const left = deadline === null ? null : Math.max(0, Math.round((deadline - performance.now()) / 1000));
  find(".left").textContent = left === null ? "" : clock(left);
  if (recording) find(".record").textContent = `Finish ${clock(Math.floor(recording.seconds()))}`;
}

const time = (milliseconds) =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

// Every half second while it runs.
function tick({ seen: count }) {
  if (element.offsetParent === null) return stop(); // another tab of the page was chosen
  seen.push({ at: performance.now(), count });
  showNumbers();
}

const wanted = () => isOpen && !paused && !document.hidden;

const updateFlow = () => worker?.postMessage({ flow: { on: wanted() } });

// The picture of `source` into the stream that runs; whether it could be had.
async function take(source) {
  const thisRun = run;
  const opened = await openSource(source);
  if (thisRun !== run) return opened.stop();
  endFeed();
  track?.stop();
  track = opened;
  track.onended = () =>
    stop(source === "screen" ? "The screen is not shared any more." : "The camera was disconnected.");
  video.srcObject = new MediaStream([track]);
  find(".mirror").checked = isMirrored(source, track);
  showMirror();
  await video.play();
  if (thisRun !== run) return;
  if (screen.isEmpty) stage.style.setProperty("--aspect", `${video.videoWidth / video.videoHeight}`);
  endFeed = feed(track, video, worker);
  listSources(sources, track.getSettings().deviceId && source !== "screen" ? track.getSettings().deviceId : source);
}

async function start() {
  const thisRun = ++run;
  say("");
  screen.clear();
  setState("starting", "Waiting for the camera. Allow it if your browser asks.");
  worker = new Worker(workerAddress);
  worker.onmessage = ({ data }) => {
    if (data.text) hear(data.text);
    else if (data.picture) onPicture(data);
    else if (data.gathered) setState("warmup", gathering(data.gathered + 1));
    else if (data.counted) tick(data.counted);
    else if ("closed" in data) stop(`${data.closed} Start the camera to try again.`);
  };
  worker.postMessage({ prefer: { side: Number(stage.dataset.side), skipSimilar: find(".similar").checked } });
  try {
    await take(sources.value || "user");
  } catch (error) {
    return thisRun === run ? stop(error.message) : undefined;
  }
  if (thisRun !== run) return;
  setState("starting", "Waiting for the server");
  worker.postMessage({ open: socketAddress(), hello: { start: settings() } });
}

// Ends the socket with the worker, and the stream on the server with the socket.
function stop(text = "") {
  if (recording) finishRecording();
  run += 1;
  worker?.terminate();
  worker = null;
  endFeed();
  endFeed = () => {};
  track?.stop();
  track = null;
  video.srcObject = null;
  isOpen = paused = false;
  deadline = null;
  shown = [];
  seen = [];
  screen.clear();
  say(text);
  setState("idle");
  showNumbers();
}

const settling = new Map(); // action -> timer: what is still being typed or dragged is not sent
function later(milliseconds, action) {
  clearTimeout(settling.get(action));
  settling.set(action, setTimeout(() => worker && action(), milliseconds));
}

// Style, prompt and LoRA: into the stream that runs.
const update = () => worker.postMessage({ tell: { update: settings() } });

// Steps, strength and seed: a new stream, while the last picture stays.
function renew() {
  if (!isOpen) return worker.postMessage({ tell: { start: settings() } });
  isOpen = paused = false;
  worker.postMessage({ flow: { on: false, anew: true } });
  worker.postMessage({ tell: { start: settings() } });
  setState("warmup", "Starting anew");
}

// What goes with the style: the weight of its LoRAs, and a picture until there is the visitor's own.
function showStyle() {
  const { loras, sample } = find(".styles input:checked").dataset;
  find(".lora").hidden = !loras;
  find(".sample").hidden = !sample;
  find(".sample").src = sample;
}

function showMirror() {
  const mirror = find(".mirror").checked;
  stage.dataset.mirror = mirror ? "yes" : "no";
  screen.set({ mirror });
}

function showStrength() {
  find(".strength output").textContent = ownStrength ? "as the style has it" : Number(strength.value).toFixed(2);
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
  if (stage.dataset.state === "over") return renew();
  paused = !paused;
  updateFlow();
  setState(stage.dataset.state);
});
on(".restart", "click", () => worker?.postMessage({ tell: { restart: true } }));
on(".record", "click", toggleRecording);
on(".still", "click", () => canvas.toBlob((blob) => save(blob, fileName(accepted, "png")), "image/png"));
on(".full", "click", () => (document.fullscreenElement ? document.exitFullscreen() : frame.requestFullscreen()));
on(".views", "change", () => {
  stage.dataset.view = chosen("views");
  screen.set({ view: chosen("views") });
});
on(".split", "input", () => {
  const split = find(".split").value / 100;
  frame.style.setProperty("--split", split);
  screen.set({ split });
});
on(".styles", "change", () => {
  showStyle();
  later(0, update);
});
on(".lora", "input", () => later(150, update));
on(".prompt", "input", () => later(400, update));
on(".mirror", "change", showMirror);
on(".similar", "change", () => worker?.postMessage({ prefer: { skipSimilar: find(".similar").checked } }));
on(".strength", "input", () => {
  ownStrength = false;
  showStrength();
  later(400, renew);
});
on(".steps", "change", () => later(0, renew));
on(".seed", "input", () => later(400, renew));
on(".own", "click", () => {
  ownStrength = true;
  find(".steps select").value = "";
  showStrength();
  later(0, renew);
});
on(".source", "change", async () => {
  if (!worker) return;
  const thisRun = run;
  try {
    await take(sources.value);
    if (thisRun === run) renew(); // its pictures may have another shape
  } catch (error) {
    if (thisRun === run) say(error.message);
  }
});
document.addEventListener("visibilitychange", updateFlow);

find(".record").hidden = !recordingKind();
find(".full").hidden = !document.fullscreenEnabled;
showStyle();
showMirror();
listSources(sources);
setState("idle");
