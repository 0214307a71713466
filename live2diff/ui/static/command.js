// Connects link.js, cues.js, meter.js and keys.js to the page.

stage.addEventListener("input", () => debounceLook());
stage.addEventListener("change", () => debounceLook());

let lookTimer = null;
function debounceLook() {
  clearTimeout(lookTimer);
  lookTimer = setTimeout(rememberLook, 300);
}

on(".share", "click", shareLook);
on(".own", "click", debounceLook);
window.addEventListener("hashchange", () => {
  const { seed } = settings();
  openLook();
  debounce(0, settings().seed === seed ? update : restartStream);
});

for (const suggestion of element.querySelectorAll(".suggestion")) {
  suggestion.addEventListener("click", () => {
    prompt.value = suggestion.textContent;
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
  });
}
on(".second-style", "change", () => debounce(0, update));
on(".second-prompt", "input", () => debounce(400, update));
on(".share-of", "input", () => {
  showMix();
  debounce(60, update);
});

on(".cue-add", "click", addCue);
on(".cue-next", "click", () => stepCue(1));
on(".cue-previous", "click", () => stepCue(-1));
on(".cue-save", "click", saveCues);
on(".cue-load", "click", () => find(".cues input[type=file]").click());
on(".cues input[type=file]", "change", async ({ target }) => {
  if (target.files[0]) await loadCues(target.files[0]);
  target.value = "";
});

on(".pip", "click", popOut);
find(".pip").hidden = !canPopOut();
document.addEventListener("keydown", onKey);

showCues();
openLook();
if (isClean) openCleanView();
