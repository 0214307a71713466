// The browser's side of the Live tab. `element` is the component, `server` the functions of live_view.py; a call that
// fails in transit gives undefined, one that fails on the server gives {error}.

const SENT_SIDE = 384; // the longest side of a frame that is sent
const SENT_QUALITY = 0.8;
const WARMUP_FRAMES = 8;
const RATE_WINDOW = 2000; // milliseconds over which the frame rate is counted

const find = (selector) => element.querySelector(selector);
const stage = find(".stage");
const canvas = find("canvas");
const video = find("video");
const notice = find(".notice");
const message = find(".message");
const startButton = find(".start");
const stopButton = find(".stop");
const prompt = find(".prompt input");
const lora = find(".lora input"); // for styles that have LoRAs: what their weights are multiplied by
const idleNotice = notice.textContent;
const sent = document.createElement("canvas");

let run = 0; // rises with every start and stop: what belongs to an older run is dropped
let camera = null;
let newest = { number: 0, captured: 0 }; // of the camera frame that the video shows now
let wake = null; // ends the wait for the next camera frame
let shown = []; // of the pictures of the last RATE_WINDOW: {at, delay}

let accepted = find(".styles input:checked").value; // the style that the server took last
let pending = 0; // changes that it has not answered

const settings = () => ({
  style: find(".styles input:checked").value,
  prompt: prompt.value,
  lora_scale: Number(lora.value),
});

const showLora = () => (find(".lora").hidden = !find(".styles input:checked").dataset.loras);

function say(text) {
  message.textContent = text;
  message.hidden = !text;
}

// What the server says of style and prompt. In the end the style that is seen is the one that is marked.
function judge(answer, asked) {
  if (!answer?.error) accepted = asked;
  if (pending === 0) find(`.styles input[value="${CSS.escape(accepted)}"]`).checked = true;
  showLora();
  if (answer?.error && !answer.gone) say(answer.error);
  else say(answer?.ignored ? `The prompt is too long. Not read: “${answer.ignored}”` : "");
}

function setState(state, text) {
  stage.dataset.state = state; // idle, starting, warmup, running
  notice.textContent = text;
  startButton.hidden = state !== "idle";
  stopButton.hidden = state === "idle";
}

function cameraError(error) {
  const words = {
    NotFoundError: "No camera was found. Connect one, or use the Video tab.",
    NotAllowedError: "The browser may not use the camera. Allow it beside the address bar, then press Start again.",
    NotReadableError: "The camera is in use by another program. Close that, then press Start again.",
  };
  return words[error.name] ?? `The camera could not be started: ${error.message}`;
}

async function openCamera() {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    throw new Error(
      "Browsers give the camera to secure pages only: open this page over https, or at localhost " +
        "(for example through an SSH tunnel)."
    );
  }
  const wanted = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
  try {
    return await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
  } catch (error) {
    throw new Error(cameraError(error));
  }
}

// Notes each frame that the camera shows, so that the loop below knows whether there is one it has not sent.
function watchCamera(thisRun) {
  const seen = (now, metadata) => {
    if (thisRun !== run) return;
    newest = { number: newest.number + 1, captured: metadata?.captureTime ?? now };
    wake?.();
    next();
  };
  const next = () =>
    video.requestVideoFrameCallback ? video.requestVideoFrameCallback(seen) : requestAnimationFrame(seen);
  next();
}

function takeFrame() {
  const scale = Math.min(1, SENT_SIDE / Math.max(video.videoWidth, video.videoHeight));
  sent.width = Math.round(video.videoWidth * scale);
  sent.height = Math.round(video.videoHeight * scale);
  sent.getContext("2d").drawImage(video, 0, 0, sent.width, sent.height);
  return sent.toDataURL("image/jpeg", SENT_QUALITY);
}

function draw(picture) {
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

function showNumbers(captured) {
  const at = performance.now();
  shown = shown.filter((picture) => at - picture.at < RATE_WINDOW).concat({ at, delay: at - captured });
  const seconds = (at - shown[0].at) / 1000;
  const delays = shown.map((picture) => picture.delay).sort((a, b) => a - b);
  find(".fps").textContent = seconds > 0 ? ((shown.length - 1) / seconds).toFixed(1) : "–";
  find(".delay").textContent = `${Math.round(delays[delays.length >> 1])} ms`;
}

async function show(answer, capturedAt) {
  if (!answer.picture) {
    if (answer.warm) return; // with several denoising steps the first pictures after the warmup take a few frames
    draw(sent); // while it warms up: the visitor's own picture
    setState("warmup", `Warming up ${answer.frames_in} / ${WARMUP_FRAMES}`);
    return;
  }
  const picture = new Image();
  picture.src = answer.picture;
  await picture.decode();
  draw(picture);
  if (stage.dataset.state !== "running") setState("running", "");
  showNumbers(capturedAt.get(answer.number));
  for (const number of capturedAt.keys()) if (number <= answer.number) capturedAt.delete(number);
}

// One frame at a time: send the newest, wait for the answer, show it. Ends when `run` moves on.
async function stream(thisRun) {
  const capturedAt = new Map(); // of the frames whose pictures have not come back
  let last = 0;
  while (thisRun === run) {
    if (newest.number === last) {
      await new Promise((resolve) => (wake = resolve));
      continue;
    }
    if (element.offsetParent === null) return stop(); // another tab of the page was chosen
    last = newest.number;
    capturedAt.set(last, newest.captured);
    const answer = await server.live_push({ frame: takeFrame(), number: last });
    if (thisRun !== run) return;
    if (!answer) return stop("The server does not answer. Is it still running? Press Start to try again.");
    if (answer.gone) {
      // Freed after a silence, such as a page left in the background: begin again.
      const opened = await server.live_start(settings());
      if (thisRun !== run) return;
      if (!opened || opened.error) return stop(opened?.error ?? "The server does not answer.");
      capturedAt.clear();
    } else if (answer.error) {
      return stop(answer.error);
    } else {
      await show(answer, capturedAt);
    }
  }
}

async function start() {
  const thisRun = ++run;
  say("");
  setState("starting", "Waiting for the camera");
  try {
    const opened = await openCamera();
    if (thisRun !== run) return opened.getTracks().forEach((track) => track.stop());
    camera = opened;
  } catch (error) {
    return thisRun === run ? stop(error.message) : undefined;
  }
  camera.getVideoTracks()[0].onended = () => stop("The camera was disconnected.");
  video.srcObject = camera;
  await video.play();
  const asked = settings();
  const opened = await server.live_start(asked);
  if (thisRun !== run) return;
  if (!opened || opened.error) return stop(opened?.error ?? "The server does not answer.");
  judge(opened, asked.style);
  shown = [];
  watchCamera(thisRun);
  await stream(thisRun);
}

function stop(text = "") {
  run += 1;
  wake?.();
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  video.srcObject = null;
  say(text);
  canvas.width = canvas.width; // empty again
  setState("idle", idleNotice);
  find(".fps").textContent = find(".delay").textContent = "–";
  server.live_stop({});
}

showLora();

let settled = null;
function update(milliseconds) {
  clearTimeout(settled);
  settled = setTimeout(async () => {
    if (run === 0 || !camera) return;
    const asked = settings();
    pending += 1;
    const answer = await server.live_update(asked);
    pending -= 1;
    judge(answer, asked.style);
  }, milliseconds);
}

startButton.addEventListener("click", start);
stopButton.addEventListener("click", () => stop());
find(".styles").addEventListener("change", () => {
  showLora();
  update(0);
});
lora.addEventListener("input", () => update(150));
prompt.addEventListener("input", () => update(400));
