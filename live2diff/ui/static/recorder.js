// Photo and recording, made in the browser; nothing is sent.

const RECORDINGS = [
  ["video/mp4;codecs=avc1.42E01F", "mp4"],
  ["video/mp4;codecs=avc1.4d002a", "mp4"],
  ["video/webm;codecs=vp9", "webm"],
  ["video/webm;codecs=vp8", "webm"],
  ["video/webm", "webm"],
  ["video/mp4", "mp4"],
];

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function fileName(style, ending) {
  const time = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
  return `live2diff-${style}-${time.replace("T", "-").replaceAll(":", "")}.${ending}`;
}

const recordingKind = () =>
  window.MediaRecorder && RECORDINGS.find(([type]) => MediaRecorder.isTypeSupported(type));

// Records `canvas` until `finish`, which resolves to the file. A recording has one size; where the canvas changes its
// own (another view, another camera), its image is scaled to fit.
function startRecording(canvas) {
  const [type] = recordingKind();
  const copy = document.createElement("canvas");
  copy.width = canvas.width + (canvas.width % 2); // H.264 needs even sizes
  copy.height = canvas.height + (canvas.height % 2);
  const context = copy.getContext("2d", { alpha: false });
  const stream = copy.captureStream();
  const recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: 5_000_000 });
  const parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);

  function draw() {
    const scale = Math.min(copy.width / canvas.width, copy.height / canvas.height);
    const [width, height] = [canvas.width * scale, canvas.height * scale];
    if (scale !== 1) context.clearRect(0, 0, copy.width, copy.height);
    context.drawImage(canvas, (copy.width - width) / 2, (copy.height - height) / 2, width, height);
  }

  draw();
  recorder.start(1000);
  const startedAt = performance.now();
  return {
    draw,
    seconds: () => (performance.now() - startedAt) / 1000,
    finish: () =>
      new Promise((resolve) => {
        recorder.onstop = () => {
          stream.getTracks().forEach((track) => track.stop());
          resolve(new Blob(parts, { type: type.split(";")[0] }));
        };
        draw(); // the last image lasts until now
        recorder.stop();
      }),
  };
}
