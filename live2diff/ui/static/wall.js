// The examples: each plays its original and its result, half and half, under the pointer, the focus or after a tap.

const MAX_DRIFT = 0.1; // seconds between the two halves
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const cards = [...element.querySelectorAll(".card")];
const videos = (card) => [...card.querySelectorAll("video")];

function pause(card) {
  for (const video of videos(card)) video.pause();
}

function play(card) {
  for (const other of cards) if (other !== card) pause(other);
  for (const video of videos(card)) video.play().catch(() => {}); // paused again before it has loaded
}

// Shows a look on the Live tab, as if it had been chosen there.
function tryLook(style, prompt) {
  const live = document.querySelector("#live");
  const choice = live.querySelector(`.styles input[value="${CSS.escape(style)}"]`);
  choice.checked = true;
  choice.dispatchEvent(new Event("change", { bubbles: true }));
  const words = live.querySelector(".prompt input");
  words.value = prompt;
  words.dispatchEvent(new Event("input", { bubbles: true }));
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.find((tab) => tab.textContent.trim() === "Live").click();
  const start = live.querySelector(".start");
  const focus = () => (start.offsetParent ? start.focus() : requestAnimationFrame(focus)); // once the tab is shown
  focus();
}

cards.forEach((card, index) => {
  const [original, result] = videos(card);
  result?.addEventListener("timeupdate", () => {
    card.dataset.playing = "yes"; // until then the poster is shown
    if (Math.abs(original.currentTime - result.currentTime) > MAX_DRIFT) original.currentTime = result.currentTime;
  });
  for (const type of ["pointerenter", "focusin"]) card.addEventListener(type, () => calm.matches || play(card));
  card.addEventListener("pointerleave", (event) => event.pointerType === "touch" || pause(card)); // a finger leaves at once
  card.addEventListener("focusout", () => pause(card));
  card.querySelector(".pick").addEventListener("click", () => {
    play(card);
    trigger("select", { index, value: null });
  });
  card.querySelector(".try").addEventListener("click", () => tryLook(card.dataset.style, card.dataset.prompt));
});
