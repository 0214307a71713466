// The mixture of two prompts, transitions, and cues: a list of settings to step through, save and load.

const MOST_CUES = 200;
const LARGEST_CUES = 1_000_000; // bytes of a file
const CUE_FIELDS = ["style", "prompt", "mix_style", "mix_prompt", "mix", "steps", "strength", "lora_scale"];

let cues = []; // {style, ..., blend, refill, frame: of the stream, when the cue was last applied, or null}
let currentCue = -1;
let cueToNote = null; // the applied cue that the server has not answered yet
let startSettings = null; // of the visit's last stream, when it was opened

function mixSettings() {
  return {
    mix_style: find(".second-style select").value || null,
    mix_prompt: find(".second-prompt input").value,
    mix: Number(find(".share-of input").value) / 100,
  };
}

const blendFrames = () => Math.max(0, Math.min(600, Math.trunc(Number(find(".blend input").value)) || 0));

// How the next change is made: over how many frames, and whether the cache is filled again.
function transition() {
  const changesStyle = selected("styles") !== accepted;
  return { blend: blendFrames(), refill: changesStyle && !find(".memory").checked };
}

function showMix() {
  find(".share-of output").textContent = `${find(".share-of input").value} %`;
}

const only = (all, names) => Object.fromEntries(names.map((name) => [name, all[name]]));

// Called with each message of the server, before the page acts on it.
function noteForCues(message) {
  if ("started" in message) {
    // The numbers are of the previous stream, except 0: a cue that was applied before the visit began.
    for (const cue of cues) if (startSettings || cue.frame) cue.frame = null;
    startSettings = settings();
    showCues();
  }
  if (!("updated" in message) || !cueToNote) return;
  const now = settings();
  if (CUE_FIELDS.every((name) => now[name] === cueToNote[name])) cueToNote.frame = message.frame ?? null;
  cueToNote = null;
  showCues();
}

function addCue() {
  if (cues.length >= MOST_CUES) return showMessage(`There is room for ${MOST_CUES} cues.`);
  const refill = !find(".memory").checked;
  cues.push({ ...only(settings(), CUE_FIELDS), blend: blendFrames(), refill, frame: null });
  currentCue = cues.length - 1;
  if (!worker) cues[currentCue].frame = 0;
  showCues();
}

function applyCue(index) {
  if (index < 0 || index >= cues.length) return;
  const cue = cues[index];
  currentCue = index;
  applyLook({ ...only(cue, CUE_FIELDS), seed: settings().seed });
  find(".blend input").value = cue.blend;
  find(".memory").checked = !cue.refill;
  if (worker) {
    cueToNote = cue;
    worker.postMessage({ send: { update: settings(), blend: cue.blend, refill: cue.refill } });
  } else {
    cue.frame = 0;
  }
  rememberLook();
  showCues();
}

const stepCue = (step) => applyCue(currentCue + step);

function cueWords({ style, prompt: words, mix, blend, refill, frame: at }) {
  const parts = [styleTitle(style), words, mix ? `${Math.round(mix * 100)} % mixed in` : ""];
  parts.push(refill ? "at once" : `over ${blend} frames`, at === null ? "" : `at frame ${at}`);
  return parts.filter(Boolean).join(" · ");
}

function cueEntry(cue, index) {
  const [item, go, remove] = ["li", "button", "button"].map((tag) => document.createElement(tag));
  go.type = remove.type = "button";
  go.textContent = cueWords(cue);
  if (index === currentCue) go.setAttribute("aria-current", "step");
  go.onclick = () => applyCue(index);
  remove.textContent = "×";
  remove.setAttribute("aria-label", `Remove cue ${index + 1}`);
  remove.onclick = () => {
    cues.splice(index, 1);
    if (currentCue >= index) currentCue -= 1;
    showCues();
  };
  item.append(go, remove);
  return item;
}

function showCues() {
  const list = find(".cues ol");
  const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...cues.map(cueEntry));
  list.querySelectorAll("button")[focused]?.focus();
  find(".cue-next").disabled = currentCue + 1 >= cues.length;
  find(".cue-previous").disabled = currentCue < 1;
  find(".cue-save").disabled = !cues.length;
}

function cueFile() {
  const start = startSettings ?? settings();
  const entries = cues.map(({ frame: at, ...cue }) => (at === null ? cue : { frame: at, ...cue }));
  return JSON.stringify({ start, cues: entries }, null, 1);
}

function saveCues() {
  save(new Blob([cueFile()], { type: "application/json" }), fileName("cues", "json"));
}

// Parses the text of an untrusted cue file; throws an Error with a message for the viewer.
function parseCues(text, styles, present) {
  let sheet;
  try {
    sheet = JSON.parse(text);
  } catch {
    throw new Error("This is not a JSON file.");
  }
  if (!Array.isArray(sheet?.cues)) throw new Error("There are no cues in this file.");
  if (sheet.cues.length > MOST_CUES) throw new Error(`There are more than ${MOST_CUES} cues in this file.`);
  const start = checkLook(sheet.start ?? {}, styles).look;
  let now = { ...UNCHANGED, style: present.style, ...start };
  const entries = sheet.cues.map((entry, index) => {
    if (typeof entry !== "object" || entry === null) throw new Error(`Cue ${index + 1} is not an object.`);
    const { look, problems } = checkLook(entry, styles);
    if (problems.length) throw new Error(`Cue ${index + 1}: ${problems[0]}.`);
    for (const name of ["steps", "strength", "mix_style"]) if (entry[name] === null) look[name] = null;
    now = { ...now, ...look }; // what a cue does not name stays as it was
    const { blend = 8, refill = false, frame: at = null } = entry;
    const isFrame = at === null || (Number.isInteger(at) && at >= 0);
    if (!isFrame || !Number.isInteger(blend) || blend < 0 || blend > 600 || typeof refill !== "boolean") {
      throw new Error(`Cue ${index + 1}: frame and blend are whole numbers, blend at most 600; refill is true or false.`);
    }
    return { ...only(now, CUE_FIELDS), blend, refill, frame: at };
  });
  return { start, entries };
}

async function loadCues(file) {
  try {
    if (file.size > LARGEST_CUES) throw new Error("The file is larger than 1 MB.");
    const loaded = parseCues(await file.text(), styleNames(), settings());
    cues = loaded.entries;
    if (!worker && Object.keys(loaded.start).length) applyLook(loaded.start);
    currentCue = -1;
    showMessage("");
  } catch (error) {
    showMessage(`${file.name}: ${error.message}`);
  }
  showCues();
}
