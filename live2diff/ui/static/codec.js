// VP9 instead of JPEGs, both ways, where the browser has it and JPEGs take long to transfer: a part of worker.js, joined
// before it. The first frames of a stream are JPEGs, with which the network is measured.

const CODEC = "vp09.00.40.08"; // profile 0, up to 2048 x 1152 pixels
const SOFTWARE = { codec: CODEC, hardwareAcceleration: "prefer-software" }; // starts at once at any size
const COLOURS = { primaries: "bt709", transfer: "iec61966-2-1", matrix: "bt709", fullRange: true }; // of the results
const RATES = { least: 200_000, most: 4_000_000, camera: 2_000_000 }; // bits a second; `camera`: the most to the server
const ENOUGH = 3; // frames to measure: the first may suffer from the slow start of a connection
const ON_TIME = 10; // milliseconds longer than on the empty network: below this median the rate grows
const LATE = 30; // above this one it falls
const STEP = 1.3; // a smaller change of the rate is not worth the key frame it costs
const TRIAL = 20; // frames, after which VP9 stays if they were shown no later than JPEGs
const MOST_DROPPED = 5; // frames in a row that the encoder does not return in time: it is too slow

let video = null; // {encoder, decoder, rate, ...} while it is used
let videoFailed = false; // for the rest of the visit
let offered = false; // whether the server has VP9
let quickest = Infinity; // shortest round trip of a small message, in milliseconds
let lateness = []; // milliseconds of the last frames beyond the empty network
let delays = []; // milliseconds from camera to screen of the last frames
let jpegBits = { up: 0, down: 0 }; // of the last frame and the last result

const measureLatency = () => send({ echo: now() });

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

const clampRate = (rate) => Math.min(RATES.most, Math.max(RATES.least, rate));

const canVideo = (async () => {
  if (!self.VideoEncoder || !self.VideoDecoder) return false;
  const config = { ...SOFTWARE, width: 384, height: 288 };
  const kinds = [VideoEncoder, VideoDecoder];
  const found = await Promise.all(kinds.map((kind) => kind.isConfigSupported(config))).catch(() => [{}]);
  return found.every(({ supported }) => supported);
})();

// Switches to VP9 once JPEGs take long, then adapts the rate to the network. Called twice a second.
async function adaptCodec(network) {
  const late = median(lateness);
  const measured = lateness.length;
  lateness = video ? [] : lateness.slice(-ENOUGH);
  if (!video && offered && !videoFailed && flowing && (await canVideo)) {
    measureLatency();
    const takes = network - quickest; // milliseconds for the bytes, without the latency
    if (measured < ENOUGH || !(takes > options.slow)) return;
    startVideo(clampRate((500 * (jpegBits.up + jpegBits.down)) / Math.max(1, takes))); // half of what the network carries
  } else if (video && delays.length >= TRIAL && median(delays) > video.jpegDelay) {
    failVideo();
  } else if (video && measured) {
    if (delays.length >= TRIAL) video.jpegDelay = Infinity; // the trial is passed: later delays are the network's
    video.wanted = clampRate(video.wanted * (late > LATE ? 0.75 : late < ON_TIME ? 1.15 : 1));
    const change = video.wanted / video.rate;
    if (change > STEP || change < 1 / STEP) setRate(video.wanted);
  }
}

function startVideo(rate) {
  // With a negative `slow`, VP9 is used in any case.
  const jpegDelay = options.slow < 0 ? Infinity : median(delays);
  const used = { wanted: rate, size: "", keyNext: true, done: null, dropped: 0, jpegDelay };
  delays = [];
  const error = () => used === video && failVideo();
  used.encoder = new VideoEncoder({ error, output: (chunk) => used.done?.(chunk) });
  used.decoder = new VideoDecoder({ error, output: (image) => onDecoded(image.timestamp, image) });
  used.decoder.configure({ ...SOFTWARE, colorSpace: COLOURS, optimizeForLatency: true });
  video = used;
  setRate(rate);
}

function setRate(rate) {
  video.rate = Math.round(rate);
  video.configured = "";
  send({ codec: "vp9", rate: video.rate });
}

// Ends VP9 with the stream: each frame refers to the one before.
function stopVideo() {
  video?.done?.(null);
  for (const codec of [video?.encoder, video?.decoder]) if (codec && codec.state !== "closed") codec.close();
  video = null;
  lateness = [];
}

// Falls back to JPEGs for the rest of the visit.
function failVideo() {
  videoFailed = true;
  stopVideo();
  send({ codec: "jpeg" });
}

// Resolves to the frame as VP9, or to null if the encoder returns none in time.
function encodeVideo(frame) {
  const used = video;
  const size = `${frame.displayWidth}x${frame.displayHeight}`;
  return new Promise((resolve) => {
    const giveUp = () => {
      used.done?.(null);
      used.dropped += 1;
      if (used.dropped === MOST_DROPPED && used === video) failVideo();
    };
    const timer = setTimeout(giveUp, options.encoding);
    used.done = (chunk) => {
      if (chunk && chunk.timestamp !== frame.timestamp) return; // a frame that was given up
      clearTimeout(timer);
      used.done = null;
      if (chunk) used.dropped = 0;
      const bytes = chunk && new Uint8Array(chunk.byteLength);
      chunk?.copyTo(bytes);
      resolve(bytes);
    };
    try {
      if (used.configured !== size) {
        const [width, height] = [frame.displayWidth, frame.displayHeight];
        const bitrate = Math.min(used.rate, RATES.camera);
        const rates = { bitrate, bitrateMode: "constant", latencyMode: "realtime", framerate: 30 };
        used.encoder.configure({ ...SOFTWARE, ...rates, width, height });
        used.configured = size;
      }
      if (used.size !== size) used.keyNext = true;
      used.size = size;
      used.encoder.encode(frame, { keyFrame: used.keyNext });
      used.keyNext = false;
    } catch {
      failVideo();
    }
  });
}

// Every VP9 frame must be decoded, shown or not.
function decodeVideo(number, bytes) {
  const type = bytes[0] & 0x0c ? "delta" : "key";
  try {
    video?.decoder.decode(new EncodedVideoChunk({ type, timestamp: number, data: bytes }));
  } catch {
    failVideo();
  }
}

// The first bits of a JPEG are 11.
const isVideo = (bytes) => bytes[0] >> 6 === 2;
