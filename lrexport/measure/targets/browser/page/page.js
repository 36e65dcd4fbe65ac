// The page: asks for jobs, has a worker run them, and reports that it is alive while the worker computes.
const BEAT_MS = 5000;
const LOOK_MS = 250;
const GRACE_MS = 500; // signs of quick runs come that rarely
const RETRY_MS = 3000;
const page = crypto.getRandomValues(new Uint32Array(4)).join("-");
const show = (id, text) => { document.getElementById(id).textContent = text; };

/** Post a value; the server's answer as JSON, or null if it has none. Throws where it refuses. */
async function post(path, value) {
  const response = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json", "X-Page": page }, body: JSON.stringify(value),
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  return response.status === 204 ? null : response.json();
}

/** The smallest step of the clock in milliseconds. */
function timerStep() {
  let least = Infinity;
  const began = performance.now();
  for (let last = began; last - began < 50;) {
    const now = performance.now();
    if (now > last) least = Math.min(least, now - last);
    last = now;
  }
  return Math.max(least, 1e-4);
}

/** What this browser says of itself; versions and the device's model only in a secure context. */
async function about() {
  const facts = {
    agent: navigator.userAgent, cores: navigator.hardwareConcurrency || 1, isolated: self.crossOriginIsolated === true,
    secure: self.isSecureContext, timer_ms: timerStep(),
  };
  const data = navigator.userAgentData;
  if (data) {
    const high = await data.getHighEntropyValues(["fullVersionList", "platformVersion", "model", "architecture"]);
    facts.brands = (high.fullVersionList || []).map(({ brand, version }) => [brand, version]);
    facts.platform = [high.platform, high.platformVersion, high.architecture].filter(Boolean).join(" ");
    facts.model = high.model || "";
  }
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const info = adapter?.info;
  if (info) facts.gpu = [info.vendor, info.architecture, info.device, info.description].filter(Boolean).join(" ") || "unnamed";
  return facts;
}

/** Run one job in a new worker, under its limit on the time of a stage. */
function work(job) {
  return new Promise((resolve) => {
    const worker = new Worker("worker.js", { type: "module" });
    let stage = null, ended = false;
    const end = async (answer) => {
      if (ended) return;
      ended = true;
      clearInterval(look);
      worker.terminate();
      if (answer) await post("answer", answer).catch(() => {});
      resolve();
    };
    const look = setInterval(() => {
      if (stage && performance.now() > stage.until) {
        end({ error: `${stage.name} takes more than ${Number(stage.seconds.toPrecision(3))} s`, model: stage.model, limit: "time" });
      }
    }, LOOK_MS);
    worker.onerror = (event) => end({ error: `the worker failed: ${event.message || "it ended"}`, model: stage?.model });
    worker.onmessage = ({ data }) => {
      if (data.end) end(null);
      else if (data.error) end(data);
      else if (data.stage === null) stage = null;
      else if (data.stage) stage = { ...data, name: data.stage, until: performance.now() + 1e3 * data.seconds + GRACE_MS };
      if (data.shown) show("status", data.shown);
      if (data.figures) showFigures(data.figures);
    };
    worker.postMessage({ job, page });
  });
}

function showFigures(figures) {
  const rows = Object.entries(figures).map(([name, { samples_ms }]) => {
    const row = document.createElement("tr");
    const median = [...samples_ms].sort((a, b) => a - b)[samples_ms.length >> 1];
    for (const text of [name, `${median.toPrecision(3)} ms`, samples_ms.length]) {
      row.appendChild(document.createElement("td")).textContent = text;
    }
    return row;
  });
  document.getElementById("figures").replaceChildren(...rows);
  document.querySelector("table").hidden = false;
}

async function main() {
  show("status", "Connecting…");
  const facts = await about();
  show("about", `${facts.agent}; ${facts.cores} cores; clock in steps of ${(1e3 * facts.timer_ms).toFixed(1)} µs.`);
  let lock = null;
  setInterval(() => post("beat", {}).catch(() => {}), BEAT_MS);
  for (;;) {
    try {
      const job = await post("job", facts);
      if (!job) { show("status", "Connected. Waiting for something to measure."); continue; }
      lock = await navigator.wakeLock?.request("screen").catch(() => null);
      await work(job);
      await lock?.release().catch(() => {});
      show("status", "Done. The figures are where lrexport was started.");
    } catch (error) {
      show("status", `${error.message || error}. Trying again…`);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

main();
