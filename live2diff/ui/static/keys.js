// Keyboard shortcuts, picture in picture, and the clean view: the picture alone, for OBS and second screens.

const isClean = new URLSearchParams(location.search).get("view") === "clean";

const press = (name) => !find(`.${name}`).disabled && find(`.${name}`).click();

function stepStyle(step) {
  const names = styleNames();
  const next = names[(names.indexOf(selected("styles")) + step + names.length) % names.length];
  choose("styles", next);
  find(`.styles input[value="${CSS.escape(next)}"]`).dispatchEvent(new Event("change", { bubbles: true }));
}

const KEYS = {
  " ": () => (worker ? press("pause") : start()),
  r: () => press("restart"),
  s: () => press("still"),
  f: () => press("full"),
  n: () => stepCue(1),
  p: () => stepCue(-1),
  ArrowRight: () => stepStyle(1),
  ArrowDown: () => stepStyle(1),
  ArrowLeft: () => stepStyle(-1),
  ArrowUp: () => stepStyle(-1),
};

// Keys keep the meaning that the focused control gives them: letters in text fields, the others in every control.
function onKey(event) {
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const isOurs = Object.hasOwn(KEYS, name) && !event.ctrlKey && !event.metaKey && !event.altKey && !event.defaultPrevented;
  if (!isOurs || element.offsetParent === null) return;
  const target = event.target instanceof Element ? event.target : document.body;
  const taken = /[a-z]/.test(name) && name.length === 1 ? "input:not([type=radio], [type=checkbox], [type=range])" : "input, button, a, summary";
  if (!isClean && target.closest(`${taken}, textarea, select, [contenteditable], [role=tab]`)) return;
  if (event.repeat && !name.startsWith("Arrow")) return;
  event.preventDefault();
  KEYS[name]();
}

async function popOut() {
  if (document.pictureInPictureElement) return document.exitPictureInPicture();
  const copy = document.createElement("video");
  const stream = canvas.captureStream();
  Object.assign(copy, { muted: true, srcObject: stream });
  const end = () => {
    stream.getTracks().forEach((track) => track.stop());
    find(".pip").setAttribute("aria-pressed", "false");
    updateFlow();
  };
  copy.addEventListener("leavepictureinpicture", end);
  try {
    screen.set({}); // a canvas gives its image only when it is drawn
    await copy.play();
    await copy.requestPictureInPicture();
    find(".pip").setAttribute("aria-pressed", "true");
  } catch (error) {
    end();
    showMessage(`The picture cannot be shown in a window of its own: ${error.message}`);
  }
}

const canPopOut = () => Boolean(document.pictureInPictureEnabled && canvas.captureStream);

function openCleanView() {
  document.documentElement.classList.add("clean");
  const fit = new URLSearchParams(location.search).get("fit");
  document.documentElement.classList.toggle("whole", fit === "whole");
  frame.addEventListener("click", () => worker || start());
  start();
}
