// Times the decoders that `onnx-gpt measure --target` has written, by transformers.js, as an application runs a bundle.
import { AutoModelForCausalLM, BaseStreamer, env } from "/modules/@huggingface/transformers/dist/transformers.min.js";
import { Chat } from "./chat.js"; // it lets transformers.js load from this server alone

// When the prompt was given, and when each token came.
class Clock extends BaseStreamer {
  times = [];
  put() {
    this.times.push(performance.now());
  }
  end() {}
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.ceil((sorted.length - 1) / 2)]) / 2;
};

// Seconds of a prompt of so many tokens, and of each step after it.
async function run(chat, tokens, steps) {
  const clock = new Clock();
  const ids = Array.from({ length: tokens }, (_, i) => (17 * i) % 500);
  await chat.model.generate({ ...chat.fromIds(ids), max_new_tokens: steps + 1, do_sample: false, streamer: clock });
  const [prompt, ...rest] = clock.times.slice(1).map((time, i) => (time - clock.times[i]) / 1000);
  return { prompt, rest };
}

// One decoder: {step: {tokens before it: seconds}, prompt: {its tokens: seconds}}, medians.
async function timed(chat, asked) {
  const found = { step: {}, prompt: {} };
  await run(chat, Math.min(...asked.step), asked.steps); // the first runs are slow: the browser is still compiling
  for (const length of asked.prompt) {
    const times = [];
    for (let i = 0; i <= asked.prompts; i++) times.push((await run(chat, length, 0)).prompt);
    found.prompt[length] = median(times.slice(1));
  }
  for (const context of asked.step) {
    // Half of the steps lie before the context that is asked for, half after it.
    found.step[context] = median((await run(chat, context - asked.steps / 2, asked.steps)).rest);
  }
  return found;
}

// What decoders.json asks for, as times.json. folder: where it is served. tell is called with a line for each decoder.
export async function measure({ folder = "bundle", threads, tell } = {}) {
  const asked = await (await fetch(`/${folder}/decoders.json`)).json();
  const wasm = env.backends.onnx.wasm;
  if (threads) wasm.numThreads = threads;
  const times = {};
  for (const name of asked.models) {
    times[name] = {};
    const dtype = name.split(":")[1];
    for (const decoder of asked.decoders) {
      tell?.(`${name}, ${decoder} …`);
      const device = dtype === "q8" ? "wasm" : "webgpu";
      const chat = new Chat(null, await AutoModelForCausalLM.from_pretrained(`${folder}/${decoder}`, { dtype, device }));
      times[name][decoder] = await timed(chat, asked);
      await chat.dispose();
    }
  }
  return { on: `${browser()}, onnxruntime-web ${env.backends.onnx.versions.web}, ${wasm.numThreads} threads`, times };
}

function browser() {
  const brand = navigator.userAgentData?.brands.find(({ brand }) => !/Not.?A.?Brand/.test(brand));
  return brand ? `${brand.brand} ${brand.version}, ${navigator.userAgentData.platform}` : navigator.userAgent;
}
