// The part of the Live tab that must not wait for the page: camera frames to JPEG, the socket, and JPEG to pictures.
// From the page: {open: address, hello}, {stream} or {frame, captured}, {tell}, {flow}, {prefer}.
// To the page: {text} from the server, {picture, original, captured}, {gathered}, {counted}, {closed}.

const SENT_QUALITY = 0.8;
const MOST_IN_FLIGHT = 16;
const PROBE_EVERY = 10_000; // milliseconds between measurements of the empty network
const SPARE = 2; // milliseconds by which a frame may come too early
const HEADER = 20; // bytes before the JPEG in an answer
const ALIKE = 1.2; // of 255: frames that differ by less, on average, are not sent again
const LONGEST_SKIP = 1000; // milliseconds

const surface = new OffscreenCanvas(2, 2);
const drawing = surface.getContext("2d", { alpha: false, willReadFrequently: true });
const tiny = new OffscreenCanvas(16, 12).getContext("2d", { willReadFrequently: true });

let socket = null;
let flowing = false; // whether frames are wanted: a stream is open, and not paused
let prefer = { side: 384, skipSimilar: false }; // the longest side of a frame that is sent, ...
let newest = null; // {frame, captured}: the camera's last, until it is sent
let encoding = false;
let timer = null;
let lastLook = null; // 16 x 12 pixels of the last frame sent
let counted = { seen: 0, sent: 0 };

const sent = new Map(); // number -> {at, captured, original}: what has not been shown yet
let number = 0; // of the last frame sent
let taken = 0; // of the last frame that the server has answered
let shown = 0;
let answeredAt = 0;
let network = 0; // milliseconds there and back, without the server's own
let work = 0; // milliseconds from frame to frame on the server
let interval = 16; // milliseconds from frame to frame of the camera
let seenAt = 0;
let probedAt = -Infinity;

// performance.now() on a clock that page and worker share.
const now = () => performance.timeOrigin + performance.now();

// How long to wait before sending, so that the frame arrives as the server gets free for it: earlier it would only
// grow old in the mailbox, later the server would have nothing to do. More are in flight only if the network is slow.
function wait() {
  const flying = number - taken;
  if (flying === 0) return 0;
  const probing = now() - probedAt > PROBE_EVERY; // with nothing else on the way
  const needed = 1 + Math.ceil((network + work) / Math.max(work, interval, 1));
  if (probing || flying >= Math.min(needed, MOST_IN_FLIGHT)) return Infinity; // until an answer comes
  const margin = SPARE + work * 0.15;
  return answeredAt + flying * work - network - margin - now();
}

function onFrame(frame, captured) {
  const at = now();
  if (seenAt) interval += (Math.min(at - seenAt, 200) - interval) * 0.1;
  seenAt = at;
  newest?.frame.close();
  newest = null;
  if (!flowing) return frame.close();
  counted.seen += 1;
  newest = { frame, captured };
  pump();
}

function pump() {
  clearTimeout(timer);
  if (!newest || !flowing || encoding || socket?.readyState !== WebSocket.OPEN) return;
  const milliseconds = wait();
  if (milliseconds > 0.5) {
    if (milliseconds < Infinity) timer = setTimeout(pump, milliseconds);
    return;
  }
  send().catch((error) => close(`The camera's picture could not be sent: ${error.message}`));
}

// Whether the frame on `surface` hardly differs from the last one sent.
function looksAlike() {
  tiny.drawImage(surface, 0, 0, 16, 12);
  const look = tiny.getImageData(0, 0, 16, 12).data;
  let difference = 0;
  if (lastLook) for (let i = 0; i < look.length; i++) difference += Math.abs(look[i] - lastLook[i]);
  const previous = sent.get(number)?.at ?? answeredAt;
  const alike = lastLook && difference / (look.length * 0.75) < ALIKE && now() - previous < LONGEST_SKIP;
  if (!alike) lastLook = look;
  return alike;
}

async function send() {
  const { frame, captured } = newest;
  newest = null;
  encoding = true;
  const width = frame.displayWidth ?? frame.width;
  const height = frame.displayHeight ?? frame.height;
  const scale = Math.min(1, prefer.side / Math.max(width, height));
  const size = [width, height].map((side) => Math.max(2, Math.round(side * scale)));
  if (surface.width !== size[0] || surface.height !== size[1]) [surface.width, surface.height] = size; // else cleared
  drawing.drawImage(frame, 0, 0, ...size);
  frame.close();
  if (!prefer.skipSimilar || !looksAlike()) {
    const encoded = surface.convertToBlob({ type: "image/jpeg", quality: SENT_QUALITY });
    const original = surface.transferToImageBitmap();
    const jpeg = new Uint8Array(await (await encoded).arrayBuffer());
    if (flowing && socket?.readyState === WebSocket.OPEN) {
      number += 1;
      const message = new Uint8Array(4 + jpeg.length);
      new DataView(message.buffer).setUint32(0, number, true);
      message.set(jpeg, 4);
      sent.set(number, { at: now(), captured, original });
      counted.sent += 1;
      socket.send(message);
    } else {
      original.close();
    }
  }
  encoding = false;
  pump();
}

// A blob takes a detour through the browser's main process, there and back: several times slower than the decoder.
async function decode(jpeg) {
  if (!self.ImageDecoder) return createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  const decoder = new ImageDecoder({ type: "image/jpeg", data: jpeg });
  const { image } = await decoder.decode();
  decoder.close();
  return image;
}

async function onAnswer(data) {
  const header = new DataView(data);
  const [shows, takes, held, worked, gathered] = [0, 4, 8, 12, 16].map((at) => header.getUint32(at, true));
  measure(takes, held / 1000, worked / 1000);
  if (gathered) postMessage({ gathered });
  pump();
  if (data.byteLength <= HEADER || !sent.has(shows)) return;
  const { captured, original } = sent.get(shows);
  const picture = await decode(new Uint8Array(data, HEADER));
  if (!sent.delete(shows) || shows < shown) return picture.close(); // of an earlier stream, or overtaken
  shown = shows;
  forget(shows);
  postMessage({ picture, original, captured }, [picture, original]);
}

function measure(takes, held, worked) {
  const frame = sent.get(takes);
  if (!frame || takes <= taken) return;
  const sample = Math.max(0, now() - frame.at - held);
  if (now() - probedAt > PROBE_EVERY && number === takes) {
    probedAt = now();
    network = sample;
  }
  network = Math.min(network, sample);
  work += (worked - work) * (work ? 0.2 : 1);
  taken = takes;
  answeredAt = now();
}

function forget(upTo) {
  for (const [key, { original }] of sent) {
    if (key > upTo) continue;
    original.close();
    sent.delete(key);
  }
}

// Stop or go on sending. What is in flight belongs to a stream that has ended, if a new one begins.
function flow({ on, anew }) {
  flowing = on;
  if (anew) {
    forget(Infinity);
    taken = number;
    [network, work, probedAt, lastLook] = [0, 0, -Infinity, null];
  }
  if (!on) {
    newest?.frame.close();
    newest = null;
  }
  pump();
}

function open(address, hello) {
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  const opened = socket;
  let wasOpen = false;
  socket.onopen = () => {
    wasOpen = true;
    opened.send(JSON.stringify(hello));
  };
  socket.onmessage = ({ data }) => {
    if (opened !== socket) return;
    if (typeof data === "string") postMessage({ text: JSON.parse(data) });
    else onAnswer(data);
  };
  socket.onclose = () => {
    if (opened !== socket) return;
    close(wasOpen ? "The connection to the server was lost." : "The server cannot be reached.");
  };
}

function tell(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  else if (socket?.readyState === WebSocket.CONNECTING) socket.addEventListener("open", () => tell(message));
}

function close(words) {
  socket?.close();
  socket = null;
  flow({ on: false, anew: true });
  postMessage({ closed: words });
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
  else if (data.open) open(data.open, data.hello);
  else if (data.tell) tell(data.tell);
  else if (data.flow) flow(data.flow);
  else if (data.prefer) prefer = { ...prefer, ...data.prefer };
};

setInterval(() => {
  postMessage({ counted });
  counted = { seen: 0, sent: 0 };
}, 500);
