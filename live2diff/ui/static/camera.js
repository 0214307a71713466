// Video sources: cameras and screens, and the messages for when there is none.

const readsCamera = Boolean(window.MediaStreamTrackProcessor); // the worker can, without a video element
const canCaptureScreen = Boolean(navigator.mediaDevices?.getDisplayMedia);

function cameraMessage(error) {
  const messages = {
    NotFoundError: "No camera was found. Connect one, or use the Video tab.",
    OverconstrainedError: "That camera is no longer connected. Choose another one.",
    NotAllowedError: "The browser was not allowed to use the camera. Allow it beside the address bar, then press Start again.",
    NotReadableError: "The camera is in use by another program. Close that, then press Start again.",
  };
  return messages[error.name] ?? `The camera could not be started: ${error.message}`;
}

// The video track of `source`: "screen", "user", "environment", or a camera's id.
async function openSource(source) {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    throw new Error(
      "Browsers give the camera to secure pages only: open this page over https, or at localhost " +
        "(for example through an SSH tunnel)."
    );
  }
  const size = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 60 } };
  const facing = source === "user" || source === "environment";
  const which = facing ? { facingMode: source } : { deviceId: { exact: source } };
  try {
    const stream =
      source === "screen"
        ? await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: false })
        : await navigator.mediaDevices.getUserMedia({ video: { ...size, ...which }, audio: false });
    return stream.getVideoTracks()[0];
  } catch (error) {
    if (source !== "screen") throw new Error(cameraMessage(error), { cause: error });
    throw new Error("No screen or window was chosen. Choose one when the browser asks, or take the camera.");
  }
}

// People expect to see themselves as in a mirror, but not the room or a screen.
const isMirrored = (source, track) => source !== "screen" && track.getSettings().facingMode !== "environment";

// Fills the list of sources. Browsers name the cameras only once they may be used.
async function listSources(select, chosen) {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  const cameras = devices.filter((device) => device.kind === "videoinput" && device.deviceId && device.label);
  const options = cameras.map((camera) => [camera.deviceId, camera.label]);
  if (options.length === 0) {
    options.push(["user", "Camera"]);
    if (matchMedia("(pointer: coarse)").matches) options.push(["environment", "Back camera"]);
  }
  if (canCaptureScreen) options.push(["screen", "Screen or window"]);
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
  select.closest("label").hidden = options.length < 2;
}

// Sends each frame of `track` to `worker` until the returned function is called. Where the browser can, the worker
// reads the camera itself; elsewhere the frames are those that `video` shows.
function feed(track, video, worker) {
  if (readsCamera) {
    const own = track.clone();
    const { readable } = new MediaStreamTrackProcessor({ track: own });
    worker.postMessage({ stream: readable }, [readable]);
    return () => own.stop();
  }
  let ended = false;
  let announced = false; // by requestVideoFrameCallback, which WebKitGTK has but may never call back
  const send = async (now, metadata) => {
    const captured = performance.timeOrigin + (metadata?.captureTime ?? now);
    const frame = await createImageBitmap(video).catch(() => null); // there is none while cameras are switched
    if (frame && !ended) worker.postMessage({ frame, captured }, [frame]);
    else frame?.close();
  };
  const onFrame = (now, metadata) => {
    if (ended) return;
    announced = true;
    video.requestVideoFrameCallback(onFrame);
    send(now, metadata);
  };
  const onRepaint = (now) => {
    if (ended || announced) return;
    requestAnimationFrame(onRepaint);
    send(now);
  };
  video.requestVideoFrameCallback?.(onFrame);
  requestAnimationFrame(onRepaint);
  return () => (ended = true);
}
