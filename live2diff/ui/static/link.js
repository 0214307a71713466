// The look (styles, prompts, steps, strength, seed, view, weight) in the page's address and in local storage.
// Nothing here touches the page until command.js calls it.

const LOOK_KEY = "live2diff-look";
const LONGEST_WORDS = 500; // characters, as the page's own fields take
const LOOK_NUMBERS = {
  // name: smallest, largest, whether it is a whole number, its name in messages
  mix: [0, 1, false, "share"],
  lora_scale: [0, 1.5, false, "style weight"],
  steps: [1, 4, true, "steps"],
  strength: [0.05, 1, false, "strength"],
  seed: [0, 2147483647, true, "seed"],
};
const UNCHANGED = { prompt: "", mix_style: null, mix_prompt: "", mix: 0, lora_scale: 1, steps: null, strength: null, seed: 0 };

// Returns the valid values of `given` (from an address or a file, not trusted), clamped, and a short description of
// each problem. `styles`: the names of the model's styles.
function checkLook(given, styles) {
  const look = {};
  const problems = [];
  const texts = { style: styles, mix_style: styles, view: ["result", "both", "slider"] };
  for (const [name, known] of Object.entries(texts)) {
    if (given[name] === undefined || given[name] === null || given[name] === "") continue;
    if (known.includes(given[name])) look[name] = given[name];
    else problems.push(name === "view" ? "unknown view" : "unknown style");
  }
  for (const name of ["prompt", "mix_prompt"]) {
    if (typeof given[name] !== "string") continue;
    look[name] = given[name].slice(0, LONGEST_WORDS);
    if (given[name].length > LONGEST_WORDS) problems.push("prompt cut, it is too long");
  }
  for (const [name, [low, high, whole, words]] of Object.entries(LOOK_NUMBERS)) {
    const value = given[name];
    if (value === undefined || value === null || value === "") continue;
    const number = typeof value === "object" || typeof value === "boolean" ? NaN : Number(value);
    if (Number.isNaN(number)) {
      problems.push(`${words} is no number`);
      continue;
    }
    look[name] = Math.min(high, Math.max(low, whole ? Math.trunc(number) : number));
    if (look[name] !== number) problems.push(`${words} set to ${look[name]}`);
  }
  return { look, problems };
}

// The fragment of an address, without values that are the defaults.
function lookText(look) {
  const parts = Object.entries(look).filter(([name, value]) => value !== (UNCHANGED[name] ?? null) && value !== null);
  return String(new URLSearchParams(parts.filter(([name, value]) => name !== "view" || value !== "result")));
}

const styleNames = () => Array.from(stage.querySelectorAll(".styles input"), (input) => input.value);

const styleTitle = (name) => find(`.styles input[value="${CSS.escape(name)}"] + span b`)?.textContent ?? name;

const currentLook = () => ({ ...settings(), view: selected("views") });

function choose(radios, value) {
  find(`.${radios} input[value="${CSS.escape(value)}"]`).checked = true;
}

// Sets the page's controls; values that `look` lacks become the default, but style and view stay.
function applyLook(look) {
  const all = { ...UNCHANGED, style: selected("styles"), view: selected("views"), ...look };
  choose("styles", all.style);
  choose("views", isClean ? "result" : all.view);
  prompt.value = all.prompt;
  lora.value = all.lora_scale;
  find(".steps select").value = all.steps ?? "";
  isDefaultStrength = all.strength === null;
  strength.value = all.strength ?? 0.5;
  find(".seed input").value = all.seed;
  find(".second-style select").value = all.mix_style ?? "";
  find(".second-prompt input").value = all.mix_prompt;
  find(".share-of input").value = Math.round(all.mix * 100);
  showView();
  showStyle();
  showStrength();
  showMix();
}

// Applies the look of the address, else the last one of this browser.
function openLook() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const isLink = "style" in given || Object.keys(given).some((name) => name in UNCHANGED || name === "view");
  let kept = {};
  try {
    kept = Object.fromEntries(new URLSearchParams(localStorage.getItem(LOOK_KEY) ?? ""));
  } catch {} // storage may be blocked
  const { look, problems } = checkLook(isLink ? given : kept, styleNames());
  if (Object.keys(look).length) applyLook(look);
  if (isLink && problems.length) showMessage(`From the link: ${problems.slice(0, 3).join("; ")}.`);
}

function rememberLook() {
  const text = lookText(currentLook());
  try {
    history.replaceState(history.state, "", `${location.pathname}${location.search}#${text}`);
    localStorage.setItem(LOOK_KEY, text);
  } catch {} // storage may be blocked, and some browsers limit how often an address changes
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    stage.append(field);
    field.select();
    const copied = document.execCommand("copy"); // older, but works on pages without https
    field.remove();
    return copied;
  }
}

async function shareLook() {
  rememberLook();
  const address = new URL(location.href);
  address.hash = lookText(currentLook()); // also where the address itself could not be changed
  const copied = await copyText(address.href);
  find(".share").focus();
  if (!copied) return showMessage(`Copy this link: ${address.href}`);
  find(".share").textContent = "Link copied";
  setTimeout(() => (find(".share").textContent = "Share"), 2000);
}
