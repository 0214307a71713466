// What is seen: one canvas, on which a translated picture and the very frame that it shows are drawn as chosen.

function makeScreen(canvas, stage) {
  const context = canvas.getContext("2d", { alpha: false });
  let shown = null; // {picture, original}, the picture a VideoFrame or an ImageBitmap
  const look = { view: "result", mirror: false, split: 0.5 };

  // Side by side where that is wide enough, else one above the other.
  const isStacked = (width, height) => look.view === "both" && width > height && stage.clientWidth < 600;

  function half(image, x, y, width, height) {
    context.save();
    context.translate(x, y);
    if (look.mirror) {
      context.translate(width, 0);
      context.scale(-1, 1);
    }
    context.drawImage(image, 0, 0, width, height);
    context.restore();
  }

  function resize(width, height) {
    if (canvas.width === width && canvas.height === height) return;
    canvas.width = width;
    canvas.height = height;
    stage.style.setProperty("--aspect", `${width / height}`);
  }

  function paint() {
    if (!shown) return;
    const { picture, original } = shown;
    const { displayWidth: width = picture.width, displayHeight: height = picture.height } = picture;
    const stacked = isStacked(width, height);
    if (look.view === "both") {
      resize(stacked ? width : 2 * width, stacked ? 2 * height : height);
      half(original, 0, 0, width, height);
      half(picture, stacked ? 0 : width, stacked ? height : 0, width, height);
      return;
    }
    resize(width, height);
    half(picture, 0, 0, width, height);
    if (look.view !== "slider") return;
    const edge = Math.round(width * look.split);
    context.save();
    context.beginPath();
    context.rect(0, 0, edge, height);
    context.clip();
    half(original, 0, 0, width, height);
    context.restore();
    context.fillStyle = "#fff";
    context.fillRect(edge - 1, 0, 2, height);
  }

  function clear() {
    shown?.picture.close();
    shown?.original.close();
    shown = null;
  }

  return {
    get isEmpty() {
      return shown === null;
    },
    show(picture, original) {
      clear();
      shown = { picture, original };
      paint();
    },
    set(changed) {
      Object.assign(look, changed);
      paint();
    },
    clear,
  };
}
