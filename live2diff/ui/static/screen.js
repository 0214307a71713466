// The canvas of the Live tab: draws a result and the original frame that it was made from, in the chosen view.

function makeScreen(canvas, stage) {
  const context = canvas.getContext("2d", { alpha: false });
  let shown = null; // {result, original}; the result is a VideoFrame or an ImageBitmap
  const options = { view: "result", mirror: false, split: 0.5 };

  // Side by side where that is wide enough, else one above the other.
  const isStacked = (width, height) => options.view === "both" && width > height && stage.clientWidth < 600;

  function drawHalf(image, x, y, width, height) {
    context.save();
    context.translate(x, y);
    if (options.mirror) {
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
    const { result, original } = shown;
    const { displayWidth: width = result.width, displayHeight: height = result.height } = result;
    const stacked = isStacked(width, height);
    if (options.view === "both") {
      resize(stacked ? width : 2 * width, stacked ? 2 * height : height);
      drawHalf(original, 0, 0, width, height);
      drawHalf(result, stacked ? 0 : width, stacked ? height : 0, width, height);
      return;
    }
    resize(width, height);
    drawHalf(result, 0, 0, width, height);
    if (options.view !== "slider") return;
    const edge = Math.round(width * options.split);
    context.save();
    context.beginPath();
    context.rect(0, 0, edge, height);
    context.clip();
    drawHalf(original, 0, 0, width, height);
    context.restore();
    context.fillStyle = "#fff";
    context.fillRect(edge - 1, 0, 2, height);
  }

  function clear() {
    shown?.result.close();
    shown?.original.close();
    shown = null;
  }

  return {
    get isEmpty() {
      return shown === null;
    },
    show(result, original) {
      clear();
      shown = { result, original };
      paint();
    },
    set(changed) {
      Object.assign(options, changed);
      paint();
    },
    clear,
  };
}
