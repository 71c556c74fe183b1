// The page: takes clips one after the other, and shows what comes of each.

const STORED = "avemo-token";
const LONGEST_RECORDING = 10000; // milliseconds
const PATIENCE = 20; // times that a busy server is asked again

const by = (id) => document.getElementById(id);
const queue = [];
let working = false;

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(STORED);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  for (let attempt = 0; ; attempt++) {
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 429 || attempt === PATIENCE) return response;
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    say("The server is busy; your clip waits.");
    await new Promise((done) => setTimeout(done, 1000 * seconds));
  }
}

function say(text) { by("status").textContent = text; }

async function begin() {
  const response = await ask("/api/about");
  by("token-form").hidden = response.status !== 401;
  if (response.status === 401) {
    sessionStorage.removeItem(STORED);
    say("This server asks for a token.");
    by("token").focus();
    return;
  }
  const about = await response.json();
  const means = { audio: "listens", video: "looks" };
  by("about").textContent = `This model ${about.streams.map((s) => means[s]).join(" and ")}, and knows ${about.emotions.join(", ")}.`;
  by("bounds").textContent = `At most ${about.megabytes} MB and ${about.seconds} seconds each. Clips are deleted when they are answered.`;
  by("paths-form").hidden = !about.paths;
  say("");
}

function add(task) {
  queue.push(task);
  if (!working) work();
}

async function work() {
  working = true;
  while (queue.length) {
    const task = queue.shift();
    say(`Reading ${task.name}${queue.length ? `, ${queue.length} more to come` : ""}`);
    try {
      await task.run();
    } catch (error) {
      refuse({ name: task.name, reason: "no answer", details: String(error.message || error), advice: "Is the server still running? Try again." });
    }
  }
  working = false;
}

function upload(file, name) {
  add({
    name,
    run: async () => {
      const response = await ask(`/api/predictions?name=${encodeURIComponent(name.slice(-200))}`, {
        method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" },
      });
      await shown(response, name);
    },
  });
}

async function shown(response, name) {
  const found = await response.json();
  if (response.status === 401) return begin();
  if (response.ok) return answer(found);
  if (found.reason) return refuse(found);
  const detail = typeof found.detail === "string" ? found.detail : "the request was refused";
  refuse({ name, reason: detail, details: "", advice: "" });
}

function answer(found) {
  const item = by("answer").content.cloneNode(true);
  const percent = (p) => `${(100 * p).toFixed(1)}%`;
  const [best, probability] = Object.entries(found.probabilities)[0];
  item.querySelector("h3").textContent = found.name;
  item.querySelector(".emotion").textContent = `${best}, ${percent(probability)}`;
  for (const [emotion, p] of Object.entries(found.probabilities)) {
    const row = document.createElement("tr");
    const name = Object.assign(document.createElement("th"), { scope: "row", textContent: emotion });
    const value = Object.assign(document.createElement("td"), { className: "value", textContent: percent(p) });
    const bar = document.createElement("td");
    const meter = Object.assign(document.createElement("meter"), { min: 0, max: 1, value: p });
    meter.setAttribute("aria-hidden", "true"); // the number says the same
    bar.append(meter);
    row.append(name, value, bar);
    item.querySelector("tbody").append(row);
  }
  if (found.picture) {
    const url = URL.createObjectURL(new Blob([found.picture], { type: "image/svg+xml" }));
    item.querySelector("figure").hidden = false;
    const image = item.querySelector("img");
    image.src = url;
    image.alt = `Time line of ${found.name}: ${best}. The waveform, the frames that counted, and what each part of voice and face added.`;
    Object.assign(item.querySelector("a"), { href: url, download: `${found.name}.svg` });
  }
  const skipped = Object.entries(found.skipped).map(([reason, count]) => `${count} (${reason})`);
  if (skipped.length) {
    item.querySelector(".skipped").hidden = false;
    item.querySelector(".skipped").textContent = `Stretches that were left out: ${skipped.join(", ")}`;
  }
  put(item, `${found.name}: ${best}, ${percent(probability)}`);
}

function refuse(found) {
  const item = by("refusal").content.cloneNode(true);
  item.querySelector("h3").textContent = found.name;
  item.querySelector(".reason").textContent = found.reason;
  item.querySelector(".details").textContent = found.details;
  item.querySelector(".advice").textContent = found.advice;
  put(item, `${found.name} cannot be used: ${found.reason}`);
}

function put(item, text) {
  by("none").hidden = true;
  by("results").prepend(item);
  say(text);
}

by("file").addEventListener("change", (event) => {
  for (const file of event.target.files) upload(file, file.name);
  event.target.value = "";
});

for (const kind of ["dragover", "dragleave", "drop"]) {
  by("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") for (const file of event.dataTransfer.files) upload(file, file.name);
  });
}

by("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORED, by("token").value);
  by("token").value = "";
  begin();
});

by("paths-form").addEventListener("submit", (event) => {
  event.preventDefault();
  for (const path of by("paths").value.split("\n").map((line) => line.trim()).filter(Boolean)) {
    add({
      name: path,
      run: async () => {
        const response = await ask("/api/paths", {
          method: "POST", body: JSON.stringify({ paths: [path] }), headers: { "Content-Type": "application/json" },
        });
        if (!response.ok) return shown(response, path);
        const [found] = (await response.json()).results;
        return found.emotion ? answer(found) : refuse(found);
      },
    });
  }
});

let recorder = null;
by("record").addEventListener("click", async () => {
  if (recorder) return recorder.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: true });
  } catch (error) {
    return say(`There is no camera or microphone to record from, or it was not allowed (${error.name}).`);
  }
  const preview = by("preview");
  const parts = [];
  preview.srcObject = stream;
  preview.hidden = false;
  preview.play();
  recorder = new MediaRecorder(stream);
  const end = setTimeout(() => recorder.stop(), LONGEST_RECORDING);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    clearTimeout(end);
    for (const track of stream.getTracks()) track.stop();
    preview.hidden = true;
    preview.srcObject = null;
    const type = recorder.mimeType;
    recorder = null;
    by("record").textContent = "Record from the camera";
    upload(new Blob(parts, { type }), "recording");
  };
  recorder.start();
  by("record").textContent = "Stop recording";
  say("Recording, ten seconds at most.");
});

begin();
