// Runs bundles in headless Chromium, or in Node, and prints what came out as one JSON document.
//
//   node headless.mjs MODULES < request.json
//
// {"runtime": "node", "root": "/bundles", "calls": [{"folder": "web", "dtype": "q8", "device": "cpu", …}]}
// {"runtime": "chromium", "url": "http://127.0.0.1:8000", "executable": "/usr/bin/chromium", "calls": […], "screenshot": …}
//
// A call loads a model and gives `ids` for `messages` or `prompt` (token ids), `rows` for `texts`, and `steps`, the
// milliseconds of each decoding step, after as many unmeasured rounds as `warm` says; with `measure`, what measure.js
// finds of decoders that are served in the bundle's place. `webgpu` runs on SwiftShader, a GPU in software, whose subgroups of 4 lanes
// onnxruntime's attention kernel does not expect: they are hidden from it.
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const modules = resolve(process.argv[2]);
const request = JSON.parse(readFileSync(0, "utf8"));
const load = (path) => import(pathToFileURL(join(modules, path)));

const QUIET = [
  "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"];

async function inNode() {
  const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = await load(
    "@huggingface/transformers/dist/transformers.node.mjs",
  );
  env.allowRemoteModels = false;
  env.localModelPath = request.root;
  const done = [];
  for (const call of request.calls) {
    const tokenizer = await AutoTokenizer.from_pretrained(call.folder);
    const model = await AutoModelForCausalLM.from_pretrained(call.folder, { dtype: call.dtype, device: "cpu" });
    const options = { max_new_tokens: call.max_new_tokens, do_sample: false };
    if (call.texts) {
      tokenizer.padding_side = "left";
      const inputs = tokenizer(call.texts, { padding: true });
      const rows = (await model.generate({ ...inputs, ...options })).tolist();
      done.push({ rows: rows.map((row) => row.slice(inputs.input_ids.dims[1]).map(Number)) });
    } else {
      const inputs = call.messages
        ? tokenizer.apply_chat_template(call.messages, { add_generation_prompt: true, return_dict: true })
        : {
            input_ids: new Tensor("int64", BigInt64Array.from(call.prompt, BigInt), [1, call.prompt.length]),
            attention_mask: new Tensor("int64", new BigInt64Array(call.prompt.length).fill(1n), [1, call.prompt.length]),
          };
      const prompt = Array.from(inputs.input_ids.data, Number);
      const output = await model.generate({ ...inputs, ...options });
      done.push({ prompt, ids: Array.from(output.data.slice(prompt.length), Number) });
    }
    await model.dispose();
  }
  return done;
}

async function inChromium() {
  const { chromium } = await load("playwright-core/index.mjs");
  const gpu = request.calls.some((call) => call.device === "webgpu");
  const browser = await chromium.launch({
    executablePath: request.executable,
    args: [...QUIET, ...(gpu ? SOFTWARE_GPU : ["--disable-gpu"])],
  });
  try {
    const done = [];
    for (const call of request.calls) {
      const page = await browser.newPage({ viewport: { width: 1100, height: 820 } });
      const foreign = [];
      page.on("request", (sent) => /^(https?|wss?):/.test(sent.url()) && !sent.url().startsWith(request.url) && foreign.push(sent.url()));
      await page.addInitScript(() => {
        if (typeof GPUAdapter === "undefined") return;
        const features = Object.getOwnPropertyDescriptor(GPUAdapter.prototype, "features").get;
        const hidden = { get() { return new Set([...features.call(this)].filter((name) => !name.startsWith("subgroup"))); } };
        Object.defineProperty(GPUAdapter.prototype, "features", hidden);
      });
      await page.goto(`${request.url}/empty.html`);
      const result = await page.evaluate(async (given) => {
        if (given.measure) return (await import("/measure.js")).measure(given.measure);
        const { Chat } = await import("/chat.js");
        const started = performance.now();
        const chat = await Chat.load(given);
        const loading = performance.now() - started;
        const options = { max_new_tokens: given.max_new_tokens, min_new_tokens: given.min_new_tokens };
        const inputs = given.messages ? chat.encode(given.messages) : given.prompt && chat.fromIds(given.prompt);
        // The first runs are slow: the browser is still compiling.
        for (let i = 0; i < (given.warm ?? 0); i++) await chat.continue(inputs, { max_new_tokens: 2 });
        const found = given.texts
          ? { rows: await chat.batch(given.texts, given.max_new_tokens) }
          : await chat.continue(inputs, options);
        await chat.dispose();
        return { ...found, loading, isolated: crossOriginIsolated };
      }, call);
      done.push({ ...result, foreign });
      await page.close();
    }
    return done;
  } finally {
    await browser.close();
  }
}

console.log(JSON.stringify(await (request.runtime === "node" ? inNode() : inChromium())));
process.exit(0);
