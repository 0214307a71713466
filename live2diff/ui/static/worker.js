// The part of the Live tab that must not wait for the page: encoding camera frames, the socket, decoding results.
// From the page: {open: address}, {stream} or {frame, captured}, {send}, {flow}, {options}, {stop}.
// To the page: {opened}, which it answers with {send: start}, {text} from the server, {result, original, captured},
// {collected}, {counted}, {cut} when the connection is lost and tried again, {closed} when that is given up.

const JPEG_QUALITY = 0.8;
const MAX_IN_FLIGHT = 16;
const PROBE_EVERY = 10_000; // milliseconds between measurements of the empty network
const MARGIN = 2; // milliseconds by which a frame may arrive too early
const HEADER = 20; // bytes before the image in a result
const SIMILAR = 1.2; // of 255: frames with a smaller mean difference are not sent
const LONGEST_SKIP = 1000; // milliseconds
const KEPT = 8; // last frames, from which a new stream warms up after a cut
const RESUME = "live2diff.resume"; // subprotocol that resumes a visit; the token is offered beside it
const RECONNECTING = 4000; // close code of a socket that is replaced by another
const LONGEST_ATTEMPT = 4000; // milliseconds to connect

const surface = new OffscreenCanvas(2, 2);
const drawing = surface.getContext("2d", { alpha: false, willReadFrequently: true });
const tiny = new OffscreenCanvas(16, 12).getContext("2d", { willReadFrequently: true });

let socket = null;
let flowing = false; // whether to send frames: a stream is open, and not paused
// side: longest side of a frame that is sent. All others in milliseconds. silence: without a message, after which the
// network is taken for dead (the server sends one every 2 s). pause, longestPause, giveUp: after a cut, the first and the
// longest pause between attempts, and until the page gives up. slow: transfer time of JPEGs from which on VP9 is used.
// encoding: time limit of the VP9 encoder for a frame.
let options = {
  side: 384, skipSimilar: false, silence: 8000, slow: 15, encoding: 500,
  pause: 250, longestPause: 1000, giveUp: 60_000,
};
let newest = null; // {frame, captured}: the camera's last, until it is sent
let encoding = false;
let timer = null;
let lastThumbnail = null; // 16 x 12 pixels of the last frame sent
let seen = 0; // frames of the camera since the last `counted` message

const sent = new Map(); // number -> {at, captured, original}: frames whose result has not been shown yet
let number = 0; // of the last frame sent
let answered = 0; // number of the last frame that the server has answered
let shown = 0;
let answeredAt = 0;
let network = 0; // milliseconds there and back, without the server's own
let work = 0; // milliseconds from frame to frame on the server
let interval = 16; // milliseconds from frame to frame of the camera
let seenAt = 0;
let probedAt = -Infinity;

let address = "";
let token = ""; // for the next connection
let reached = false; // whether there has been a connection
let cutAt = 0; // when the connection was cut; 0 while there is one
let attempts = 0;
let retry = null; // timer
let heardAt = 0; // by the wall clock: the others may stop while the computer sleeps
let recent = []; // the last frames sent, as messages or VideoFrames
let texts = Promise.resolve(); // resolves when the server's texts are handled

// Milliseconds on a clock that page and worker share.
const now = () => performance.timeOrigin + performance.now();

// Milliseconds to wait before sending, so that the frame arrives just before the server is free: earlier, it would
// wait there; later, the server would be idle. Several frames are in flight only if the network is slow.
function sendDelay() {
  const inFlight = number - answered;
  if (inFlight === 0) return 0;
  const probing = now() - probedAt > PROBE_EVERY; // with no other frame in flight
  const needed = 1 + Math.ceil((network + work) / Math.max(work, interval, 1));
  if (probing || inFlight >= Math.min(needed, MAX_IN_FLIGHT)) return Infinity; // until the next result
  const margin = MARGIN + work * 0.15;
  return answeredAt + inFlight * work - network - margin - now();
}

function onFrame(frame, captured) {
  const at = now();
  if (seenAt) interval += (Math.min(at - seenAt, 200) - interval) * 0.1;
  seenAt = at;
  newest?.frame.close();
  newest = null;
  if (!flowing) return frame.close();
  seen += 1;
  newest = { frame, captured };
  sendWhenDue();
}

function sendWhenDue() {
  clearTimeout(timer);
  if (!newest || !flowing || encoding || socket?.readyState !== WebSocket.OPEN) return;
  const milliseconds = sendDelay();
  if (milliseconds > 0.5) {
    if (milliseconds < Infinity) timer = setTimeout(sendWhenDue, milliseconds);
    return;
  }
  sendFrame().catch((error) => close(`The camera's image could not be sent: ${error.message}`));
}

// Whether the frame on `surface` hardly differs from the last one sent.
function isSimilar() {
  tiny.drawImage(surface, 0, 0, 16, 12);
  const thumbnail = tiny.getImageData(0, 0, 16, 12).data;
  let difference = 0;
  if (lastThumbnail) for (let i = 0; i < thumbnail.length; i++) difference += Math.abs(thumbnail[i] - lastThumbnail[i]);
  const previous = sent.get(number)?.at ?? answeredAt;
  const similar = lastThumbnail && difference / (thumbnail.length * 0.75) < SIMILAR && now() - previous < LONGEST_SKIP;
  if (!similar) lastThumbnail = thumbnail;
  return similar;
}

async function sendFrame() {
  const { frame, captured } = newest;
  newest = null;
  encoding = true;
  const width = frame.displayWidth ?? frame.width;
  const height = frame.displayHeight ?? frame.height;
  const scale = Math.min(1, options.side / Math.max(width, height));
  const size = [width, height].map((side) => Math.max(2, Math.round(side * scale)));
  if (surface.width !== size[0] || surface.height !== size[1]) {
    [surface.width, surface.height] = size; // clears the surface
    recent.splice(0).forEach((each) => each.close?.()); // a stream has frames of one size
  }
  drawing.drawImage(frame, 0, 0, ...size);
  frame.close();
  if (!options.skipSimilar || !isSimilar()) {
    const image = video && new VideoFrame(surface, { timestamp: Math.round(now() * 1000) });
    const encoded = image ? encodeVideo(image) : encodeJpeg();
    const original = surface.transferToImageBitmap();
    const bytes = await encoded;
    if (bytes && flowing && socket?.readyState === WebSocket.OPEN) {
      number += 1;
      sent.set(number, { at: now(), captured, original });
      const message = numbered(number, bytes);
      socket.send(message);
      if (!image) jpegBits.up = 8 * bytes.length;
      if (recent.push(image ?? message) > KEPT) recent.shift().close?.();
    } else {
      if (video) video.keyNext = true;
      image?.close();
      original.close();
    }
  }
  encoding = false;
  sendWhenDue();
}

async function encodeJpeg() {
  const blob = await surface.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
  return new Uint8Array(await blob.arrayBuffer());
}

function numbered(number, bytes) {
  const message = new Uint8Array(4 + bytes.length);
  new DataView(message.buffer).setUint32(0, number, true);
  message.set(bytes, 4);
  return message;
}

// Decoding a blob goes through the browser's main process: several times slower than ImageDecoder.
async function decode(jpeg) {
  if (!self.ImageDecoder) return createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  const decoder = new ImageDecoder({ type: "image/jpeg", data: jpeg });
  const { image } = await decoder.decode();
  decoder.close();
  return image;
}

async function onResult(data) {
  const header = new DataView(data);
  const [shownNumber, takenNumber, held, worked, collected] = [0, 4, 8, 12, 16].map((at) => header.getUint32(at, true));
  measure(takenNumber, held / 1000, worked / 1000);
  if (collected) postMessage({ collected });
  sendWhenDue();
  if (data.byteLength <= HEADER) return;
  const bytes = new Uint8Array(data, HEADER);
  if (isVideo(bytes)) return decodeVideo(shownNumber, bytes);
  jpegBits.down = 8 * bytes.length;
  if (sent.has(shownNumber)) onDecoded(shownNumber, await decode(bytes));
}

function onDecoded(shownNumber, result) {
  const frame = sent.get(shownNumber);
  if (!frame || shownNumber < shown) return result.close(); // of an earlier stream, or a newer one was shown
  const { captured, original } = frame;
  delays = [...delays.slice(1 - TRIAL), now() - captured];
  sent.delete(shownNumber);
  shown = shownNumber;
  forget(shownNumber);
  postMessage({ result, original, captured }, [result, original]);
}

function measure(takenNumber, held, worked) {
  const frame = sent.get(takenNumber);
  if (!frame || takenNumber <= answered) return;
  const sample = Math.max(0, now() - frame.at - held);
  if (now() - probedAt > PROBE_EVERY && number === takenNumber) {
    probedAt = now();
    network = sample;
  }
  network = Math.min(network, sample);
  lateness.push(sample - network);
  work += (worked - work) * (work ? 0.2 : 1);
  answered = takenNumber;
  answeredAt = now();
}

function forget(upTo) {
  for (const [key, { original }] of sent) {
    if (key > upTo) continue;
    original.close();
    sent.delete(key);
  }
}

// Stops or resumes sending. `reset`: another stream begins; the frames in flight are of the last one.
function flow({ on, reset }) {
  flowing = on;
  if (reset) {
    forget(Infinity);
    answered = number;
    [network, work, probedAt, lastThumbnail] = [0, 0, -Infinity, null];
  }
  if (!on) {
    newest?.frame.close();
    newest = null;
  }
  sendWhenDue();
}

function connect() {
  clearTimeout(retry);
  heardAt = Date.now();
  quickest = Infinity;
  const opened = (socket = new WebSocket(address, token ? [RESUME, token] : []));
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    if (opened !== socket) return;
    reached = true;
    heardAt = Date.now();
    measureLatency();
    postMessage({ opened: true });
  };
  socket.onmessage = ({ data }) => {
    if (opened !== socket) return;
    heardAt = Date.now();
    if (typeof data === "string") texts = texts.then(() => onText(JSON.parse(data)));
    else onResult(data);
  };
  socket.onclose = () => {
    if (opened === socket) onCut();
  };
}

async function onText(message) {
  if (message.alive) return;
  if (message.resume) return (token = message.resume);
  if (message.echo) return (quickest = Math.min(quickest, now() - message.echo));
  if (message.codec) return refuseVideo();
  if ("started" in message) {
    stopVideo();
    offered = message.codecs.includes("vp9");
    measureLatency(); // nothing else is on the way
    if (cutAt) await sendRecent();
  }
  if ("started" in message || "waiting" in message) cutAt = 0;
  postMessage({ text: message });
}

// Called when the server cannot decode the camera's VP9 frames: those in flight get no result.
function refuseVideo() {
  if (!video) return;
  failVideo();
  forget(Infinity);
  answered = number;
  sendWhenDue();
}

// Sends the last frames as JPEGs, for the new stream to warm up from. They are numbered 0 and get no result.
async function sendRecent() {
  const opened = socket;
  for (const frame of [...recent]) {
    if (!(frame instanceof Uint8Array)) drawing.drawImage(frame, 0, 0);
    const jpeg = frame instanceof Uint8Array ? frame.subarray(4) : await encodeJpeg();
    if (socket === opened) socket?.send(numbered(0, jpeg));
  }
}

// Connects again after growing pauses of random length: not all pages at once when a server is back.
function onCut() {
  if (!reached) return close("The server cannot be reached.");
  if (!cutAt) {
    cutAt = now();
    attempts = 0;
    postMessage({ cut: true });
  }
  if (now() - cutAt > options.giveUp) return close("The connection to the server was lost.");
  disconnect(RECONNECTING);
  const pause = Math.min(options.pause * 2 ** attempts++, options.longestPause);
  retry = setTimeout(connect, pause * (0.5 + Math.random() / 2));
}

function disconnect(code = 1000) {
  clearTimeout(retry);
  const former = socket;
  socket = null;
  former?.close(code);
  flow({ on: false, reset: true });
}

// Detects a silently dead network, which a socket reports only after minutes.
function watch() {
  const longest = socket?.readyState === WebSocket.OPEN ? options.silence : LONGEST_ATTEMPT;
  if (socket && reached && Date.now() - heardAt > longest) onCut();
}

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function close(reason) {
  disconnect();
  postMessage({ closed: reason });
}

// Ends this worker once the server has closed the socket: after a cut, the server would keep the place.
function stop() {
  send({ stop: true });
  const last = socket;
  disconnect();
  if (last) last.onclose = () => self.close();
  else self.close();
}

async function read(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { value: frame, done } = await reader.read();
    if (done) return;
    onFrame(frame, now());
  }
}

onmessage = ({ data }) => {
  if (data.frame) onFrame(data.frame, data.captured);
  else if (data.stream) read(data.stream);
  else if (data.open) connect((address = data.open));
  else if (data.send) send(data.send);
  else if (data.flow) flow(data.flow);
  else if (data.options) options = { ...options, ...data.options };
  else if (data.stop) stop();
};

self.addEventListener("online", () => {
  if (!cutAt) return;
  disconnect();
  connect();
});

setInterval(() => {
  watch();
  adaptCodec(network);
  postMessage({ counted: { seen, network, work, interval, bits: video?.rate ?? 0 } });
  seen = 0;
}, 500);
