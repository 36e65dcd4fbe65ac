// Measures networks in onnxruntime-web by the protocol of lrexport/measure/runner.py; docs/latency.md describes it.
const MOST_WARMUP_MS = 3000;
const LEAST_WARMUP_MS = 500; // WebAssembly is compiled again, faster, after its first runs
const LEAST_WARMUP_MS_OF_A_LAYER = 100; // which shares its kernels with many others
const STABLE = 0.05;
const LEAST_SAMPLE_MS = 5;
const STEPS_A_SAMPLE = 200; // of the clock: it is then wrong by at most 0.5 %
const PROGRESS_MS = 1000;
const SIGN_MS = 500;
const PAGE_BYTES = 65536;
const MOST_PAGES = 65536;
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  bool: Uint8Array, float16: Uint16Array,
};
let job, page, ort, timerMs, memoryIsUp = false;
let signed = -Infinity, told = 0;

/** An error about one network. */
class ModelError extends Error {
  constructor(model, cause) {
    super(words(cause));
    this.model = model;
    this.limit = memoryIsUp || /bad_alloc|out of memory|failed to allocate/i.test(this.message) ? "memory" : undefined;
    if (this.limit && !this.message.includes("memory limit")) {
      const most = job.memory || PAGE_BYTES * MOST_PAGES;
      this.message = `it needs more than its memory limit of ${(most / 1e9).toPrecision(3)} GB (${this.message})`;
    }
  }
}

function words(cause) {
  // C++ exceptions arrive as addresses where the runtime could not make a message of them.
  const text = typeof cause === "number" ? `an exception in WebAssembly (${cause})` : String(cause?.message ?? cause);
  return text.replace(/^.*ERROR_MESSAGE: /s, "").slice(0, 900);
}

self.onmessage = async ({ data }) => {
  ({ job, page } = data);
  try {
    await run();
    postMessage({ end: true });
  } catch (error) {
    postMessage({ error: words(error), model: error.model, limit: error.limit });
  }
};

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "X-Page": page }, body });
  if (!response.ok) throw new Error(await response.text());
}

const say = (answer) => post("answer", JSON.stringify(answer));

async function progress(facts) {
  if (performance.now() - told < PROGRESS_MS) return false;
  await say({ progress: facts });
  told = performance.now();
  return true;
}

/** The page ends the job if the next sign comes too late. */
function begin(model, stage, seconds = job.seconds) {
  const now = performance.now();
  if (stage === "a run" && now - signed < SIGN_MS) return;
  signed = now;
  postMessage({ stage, model, seconds });
}

function end() {
  signed = -Infinity;
  postMessage({ stage: null });
}

/** WebAssembly's memory: kept below the job's limit, and a refusal to grow is remembered. */
function watchMemory() {
  const Memory = WebAssembly.Memory;
  WebAssembly.Memory = function (options) {
    const most = job.memory ? Math.max(options.initial, Math.ceil(job.memory / PAGE_BYTES)) : Infinity;
    const memory = new Memory({ ...options, maximum: Math.min(options.maximum ?? MOST_PAGES, most) });
    const grow = memory.grow.bind(memory);
    memory.grow = (pages) => {
      try { return grow(pages); } catch (error) { memoryIsUp = true; throw error; }
    };
    return memory;
  };
  WebAssembly.Memory.prototype = Memory.prototype;
}

async function start() {
  watchMemory();
  ort = await import(`./ort/${job.script}`);
  ort.env.wasm.numThreads = job.threads;
  ort.env.wasm.wasmPaths = new URL("ort/", self.location.href).href;
  ort.env.logLevel = "fatal";
  // Starting WebAssembly does not count as a file's cost: a network of one node takes it.
  await (await create(Uint8Array.from(atob(job.smallest), (char) => char.charCodeAt(0)))).release();
}

function create(bytes) {
  return ort.InferenceSession.create(bytes, {
    executionProviders: [job.provider], graphOptimizationLevel: "all", logSeverityLevel: 4,
    extra: { session: { intra_op: { allow_spinning: "0" } } },
  });
}

const bytesOf = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());

/** The model's inputs by name, as tensors. */
async function fed(model) {
  const bytes = await bytesOf(`inputs/${model.number}`);
  const feeds = {};
  let at = 0;
  for (const { name, dtype, shape } of model.inputs) {
    const length = shape.reduce((product, size) => product * size, 1) * ARRAYS[dtype].BYTES_PER_ELEMENT;
    feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](bytes.slice(at, at + length).buffer), shape);
    at += length;
  }
  return feeds;
}

/** Send all outputs; the server refuses others than ONNX Runtime's. */
async function compare(model, outputs) {
  const named = Object.entries(outputs);
  const head = new TextEncoder().encode(JSON.stringify(named.map(([name, { type, dims, data }]) => [name, type, [...dims], data.byteLength])));
  const parts = named.map(([, { data }]) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  await post(`outputs/${model.number}`, new Blob([new Uint32Array([head.length]), head, ...parts]));
}

/** Load and first run as they are in a new instance of WebAssembly. */
async function cold(model) {
  await start();
  const bytes = await bytesOf(`model/${model.number}`);
  begin(model.name, "loading", model.seconds);
  const began = performance.now();
  try {
    const session = await create(bytes);
    const ready = performance.now();
    const feeds = await fed(model);
    begin(model.name, "the first run");
    const asked = performance.now();
    await session.run(feeds);
    return { load_ms: ready - began, first_run_ms: performance.now() - asked };
  } catch (error) {
    throw new ModelError(model.name, error);
  }
}

/** :func:`cold` in a new worker. */
function coldElsewhere(model) {
  return new Promise((resolve, reject) => {
    const child = new Worker(self.location.href, { type: "module" });
    const done = (settle, value) => { child.terminate(); settle(value); };
    child.onerror = (event) => done(reject, new ModelError(model.name, event.message || "the worker ended"));
    child.onmessage = ({ data }) => {
      if (data.figures) done(resolve, data.figures);
      else if (data.error) done(reject, Object.assign(new ModelError(model.name, data.error), { limit: data.limit }));
      else if (data.stage !== undefined) postMessage(data);
    };
    child.postMessage({ job: { ...job, only: model }, page });
  });
}

async function run() {
  timerMs = job.timer_ms;
  if (job.only) {
    postMessage({ figures: await cold(job.only) });
    return;
  }
  const first = {};
  for (const model of job.cold ? job.groups.flat() : []) {
    postMessage({ shown: `Loading ${model.name}` });
    first[model.name] ??= await coldElsewhere(model);
    end();
  }
  await start();
  for (const [index, models] of job.groups.entries()) {
    const figures = await measured(models, index);
    for (const { name } of models) Object.assign(figures[name], first[name]);
    await say({ group: index, models: figures });
    if (job.groups.length === 1) postMessage({ figures });
  }
  await say({ finished: true });
}

async function measured(models, group) {
  const sessions = [], runs = {};
  for (const model of models) {
    await progress({ stage: "loading", group, model: model.name });
    const bytes = await bytesOf(`model/${model.number}`);
    begin(model.name, "loading", model.seconds);
    try {
      const session = await create(bytes);
      sessions.push(session);
      const feeds = await fed(model);
      begin(model.name, "the first run");
      const outputs = await session.run(feeds);
      end();
      await compare(model, outputs);
      const fetches = [session.outputNames[0]];
      runs[model.name] = () => session.run(feeds, fetches);
    } catch (error) {
      throw new ModelError(model.name, error);
    }
  }
  const evict = job.evict_bytes ? evictor(job.evict_bytes) : null;
  const single = {};
  for (const [name, once] of Object.entries(runs)) single[name] = await warmedUp(name, once, group);
  const least = Math.max(job.sample_ms, STEPS_A_SAMPLE * timerMs, evict ? 0 : LEAST_SAMPLE_MS);
  const repeats = {};
  for (const name in runs) repeats[name] = Math.max(1, Math.ceil(least / single[name]));
  let rounds = job.rounds;
  if (job.group_seconds) {
    let round = 0;
    const began = performance.now();
    evict?.();
    const evicting = performance.now() - began;
    for (const name in runs) round += repeats[name] * (single[name] + evicting);
    rounds = Math.max(job.least_rounds, Math.min(rounds, Math.floor((1e3 * job.group_seconds) / round)));
  }
  const samples = await sampled(runs, repeats, rounds, evict, group);
  for (const session of sessions) await session.release();
  return Object.fromEntries(Object.keys(runs).map((name) => [name, { samples_ms: samples[name], repeats: repeats[name] }]));
}

async function warmedUp(name, once, group) {
  const times = [], few = Math.max(1, job.warmup_runs >> 1), began = performance.now();
  const spent = () => performance.now() - began;
  const least = job.group_seconds ? LEAST_WARMUP_MS_OF_A_LAYER : LEAST_WARMUP_MS;
  while (times.length < job.warmup_runs || spent() < MOST_WARMUP_MS) {
    begin(name, "a run");
    times.push(await sample(once, 1, null));
    if (await progress({ stage: "warming up", group, model: name })) postMessage({ shown: `Warming up ${name}` });
    if (times.length >= job.warmup_runs && spent() >= least) {
      const before = median(times.slice(-2 * few, -few)), last = median(times.slice(-few));
      if (job.group_seconds || Math.abs(last - before) <= STABLE * before + timerMs) break;
    }
  }
  end();
  // The mean: a run may be shorter than a step of the clock.
  const last = times.slice(-few);
  return Math.max(last.reduce((sum, time) => sum + time, 0) / last.length, timerMs / 10);
}

async function sampled(runs, repeats, rounds, evict, group) {
  const order = Object.keys(runs), random = generator(job.seed);
  const samples = Object.fromEntries(order.map((name) => [name, []]));
  let sent = 0;
  for (let done = 1; done <= rounds; done += 1) {
    for (let last = order.length - 1; last > 0; last -= 1) {
      const other = Math.floor(random() * (last + 1));
      [order[last], order[other]] = [order[other], order[last]];
    }
    for (const name of order) {
      begin(name, "a run", job.seconds * repeats[name]);
      samples[name].push(await sample(runs[name], repeats[name], evict));
    }
    if (performance.now() - told >= PROGRESS_MS) {
      const news = Object.fromEntries(order.map((name) => [name, samples[name].slice(sent)]));
      end();
      await progress({ stage: "measuring", group, done, of: rounds, samples_ms: news });
      postMessage({ shown: `Measuring: round ${done} of ${rounds}` });
      sent = done;
    }
  }
  end();
  return samples;
}

/** Milliseconds of one run. With `evict` before each, runs are timed one by one, and the steps of the clock even out. */
async function sample(once, repeats, evict) {
  let total = 0;
  if (evict) {
    for (let turn = 0; turn < repeats; turn += 1) {
      evict();
      const began = performance.now();
      await once();
      total += performance.now() - began;
    }
  } else {
    const began = performance.now();
    for (let turn = 0; turn < repeats; turn += 1) await once();
    total = performance.now() - began;
  }
  return Math.max(total, timerMs / 10) / repeats;
}

/** Reads and writes that many bytes, to evict the caches as the rest of a network does. */
function evictor(size) {
  const filler = new Float32Array(Math.max(1, size >> 2));
  return () => { for (let at = 0; at < filler.length; at += 1) filler[at] += 1; };
}

function median(values) {
  const ordered = [...values].sort((a, b) => a - b), middle = ordered.length >> 1;
  return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}

/** Random numbers in [0, 1) from a seed (mulberry32). */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
