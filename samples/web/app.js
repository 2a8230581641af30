// The page: which models the bundle has, a conversation with one of them, and how fast it is.
import { Chat } from "./chat.js";

const MODELS = {
  "model_quantized.onnx": { dtype: "q8", device: "wasm", label: "8 bits on WASM" },
  "model_q4f16.onnx": { dtype: "q4f16", device: "webgpu", label: "4 bits, float16 on WebGPU" },
  "model_q4.onnx": { dtype: "q4", device: "webgpu", label: "4 bits on WebGPU" },
  "model.onnx": { dtype: "fp32", device: "wasm", label: "float32 on WASM" },
};

const at = (id) => document.getElementById(id);
const json = async (name) => {
  const response = await fetch(`/bundle/${name}`);
  return response.ok ? response.json() : null;
};

const messages = [];
let documents = {};
let chat;

function say(role, text = "") {
  const element = document.createElement("div");
  element.className = `said ${role}`;
  element.textContent = text;
  at("talk").append(element);
  element.scrollIntoView({ block: "end" });
  return element;
}

async function features() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter ? adapter.features : null;
}

async function describe() {
  const [config, report, certificate, gpu] = await Promise.all([
    json("config.json"), json("report.json"), json("certificate.json"), features(),
  ]);
  documents = { report, certificate };
  const source = report?.source;
  const size = source ? `${(source.parameters / 1e6).toFixed(source.parameters < 1e7 ? 1 : 0)} M parameters` : "";
  at("bundle").textContent = [source?.uri ?? config?.model_type, size, `onnx-gpt ${report?.version ?? ""}`]
    .filter(Boolean).join(" · ");

  for (const file of Object.keys(config["transformers.js_config"].use_external_data_format)) {
    const model = MODELS[file];
    if (!model || (model.device === "webgpu" && !gpu)) continue;
    if (model.dtype.endsWith("f16") && !gpu.has("shader-f16")) continue;
    const bytes = ["", "_data"].reduce((sum, part) => sum + (report?.files[`onnx/${file}${part}`] ?? 0), 0);
    const text = bytes ? `${model.label} (${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB)` : model.label;
    at("model").append(new Option(text, file));
  }
  if (at("model").querySelector('[value="model_quantized.onnx"]')) at("model").value = "model_quantized.onnx";
}

// What certificate.json says of the chosen model's parity; report.json where there is no certificate.
function showVerdict(file) {
  const certified = documents.certificate?.parity?.[`onnx/${file}`];
  const reported = documents.report?.models?.[`onnx/${file}`]?.parity ?? documents.report?.parity;
  const parity = certified ?? reported ?? "not run";
  const known = typeof parity === "object";
  const passed = known && parity.verdict === "pass";
  const by = certified === undefined ? "report.json" : "certificate.json";
  at("verdict").hidden = false;
  at("verdict").className = `badge ${passed ? "" : known ? "fail" : "open"}`;
  at("verdict").textContent = passed ? "✓ parity certified" : known ? "✗ parity failed" : "parity not run";
  at("verdict").title = known
    ? `${by}: mean KL ${Number(parity.mean_kl).toPrecision(2)} nats a token against ${parity.reference}`
    : `${by}: made with --no-parity`;
}

async function load() {
  at("send").disabled = true;
  const { dtype, device } = MODELS[at("model").value];
  showVerdict(at("model").value);
  at("speed").textContent = "loading …";
  try {
    await chat?.dispose();
    const started = performance.now();
    chat = await Chat.load({ dtype, device });
    at("speed").textContent = `loaded in ${((performance.now() - started) / 1000).toFixed(1)} s`;
    at("send").disabled = false;
  } catch (error) {
    at("speed").textContent = "";
    say("assistant failed", `The model cannot be loaded: ${error.message}`);
  }
}

async function send(event) {
  event.preventDefault();
  const text = at("prompt").value.trim();
  if (!text || at("send").disabled) return;
  at("prompt").value = "";
  at("send").disabled = true;
  messages.push({ role: "user", content: text });
  say("user", text);
  const answer = say("assistant writing");
  const started = performance.now();
  let tokens = 0;
  try {
    const done = await chat.answer(messages, {
      max_new_tokens: 160,
      onText: (piece) => {
        answer.textContent += piece;
        answer.scrollIntoView({ block: "end" });
      },
      onToken: () => {
        tokens += 1;
        at("speed").textContent = `${tokens} tokens · ${(tokens / ((performance.now() - started) / 1000)).toFixed(1)} tokens/s`;
      },
    });
    const decoding = done.steps.reduce((sum, step) => sum + step, 0) / 1000;
    const rate = done.steps.length ? (done.steps.length / decoding).toFixed(1) : "–";
    at("speed").textContent = `${done.ids.length} tokens · ${rate} tokens/s · first in ${(done.first / 1000).toFixed(1)} s`;
    messages.push({ role: "assistant", content: done.text });
  } catch (error) {
    answer.classList.add("failed");
    answer.textContent = `The model stopped: ${error.message}`;
    messages.pop();
  }
  answer.classList.remove("writing");
  at("send").disabled = false;
  at("prompt").focus();
}

at("form").addEventListener("submit", send);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) send(event);
});
at("model").addEventListener("change", load);
await describe();
await load();
