// The part that limits the frame rate, and the flicker of the picture.

const STILL = 4; // of 255: a pixel of the camera that changes less from frame to frame stands still
const LEAST_NOISE = 0.25; // of 255: a source that is calmer than this counts as this calm
const FEWEST_STILL = 64; // pixels, of 32 x 24
const STEADY_MEMORY = 0.97; // decay of the sums with each frame

let timing = null; // of worker.js: {network, work, interval} in milliseconds, bits a second of VP9
let lastPair = null; // thumbnails of the last frame and its result
let steadiness = { source: 0, result: 0, count: 0 };
let thumbnails = null;

// Names the part that limits the frame rate, "" if unknown: `rate` and `camera` in frames a second, `work` in
// milliseconds from frame to frame on the server.
function limitOf({ state, rate, camera, work }) {
  if (state === "waiting") return "line";
  if (!rate || !camera) return "";
  if (rate >= 0.85 * camera) return "camera";
  return work * rate >= 700 ? "model" : "network";
}

// Sums the changes of the pixels that stand still in the source, in source and result; `before` and `after` are
// {source, result} with RGBA values.
function stillFlicker(before, after) {
  const sums = { source: 0, result: 0, count: 0 };
  for (let i = 0; i < after.source.length; i += 4) {
    let [source, result] = [0, 0];
    for (let c = i; c < i + 3; c++) {
      source += Math.abs(after.source[c] - before.source[c]);
      result += Math.abs(after.result[c] - before.result[c]);
    }
    if (source >= 3 * STILL) continue;
    sums.source += source / 3;
    sums.result += result / 3;
    sums.count += 1;
  }
  return sums;
}

// The change of the result over that of the source, null where too little stood still.
function flickerRatio({ source, result, count }) {
  return count < FEWEST_STILL ? null : result / Math.max(source, LEAST_NOISE * count);
}

function thumbnail(image) {
  thumbnails ??= new OffscreenCanvas(32, 24).getContext("2d", { willReadFrequently: true });
  thumbnails.drawImage(image, 0, 0, 32, 24);
  return thumbnails.getImageData(0, 0, 32, 24).data;
}

// Called with each result; does nothing while "More" is closed.
function noteSteadiness(result, original) {
  if (!find(".more").open) return (lastPair = null);
  const pair = { source: thumbnail(original), result: thumbnail(result) };
  if (lastPair) {
    const found = stillFlicker(lastPair, pair);
    for (const name of Object.keys(steadiness)) steadiness[name] = steadiness[name] * STEADY_MEMORY + found[name];
  }
  lastPair = pair;
}

function showMeter(rate) {
  const { network = 0, work = 0, interval = 0, bits = 0 } = timing ?? {};
  const camera = interval ? 1000 / interval : 0;
  find(".why").textContent = limitOf({ state: stage.dataset.state, rate, camera, work });
  const flicker = flickerRatio(steadiness);
  find(".meter").textContent =
    rate && timing
      ? `Camera ${Math.round(camera)} a second · model ${time(work)} a frame · network ${time(network)}, ${bits ? `VP9 at ${(bits / 1e6).toFixed(1)} Mbit/s` : "JPEG"} · ` +
        (flicker === null ? "nothing stands still" : `what stands still flickers ${flicker.toFixed(1)} times as much as the camera's`)
      : "";
}
