// A bundle in the browser: loads one of its models, and streams an answer. Nothing is fetched from elsewhere.
import { AutoModelForCausalLM, AutoTokenizer, TextStreamer, Tensor, env } from "/modules/@huggingface/transformers/dist/transformers.min.js";

env.allowLocalModels = true;
env.allowRemoteModels = false;
env.localModelPath = "/";
env.useBrowserCache = false;
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = "/modules/onnxruntime-web/dist/";

export class Chat {
  constructor(tokenizer, model) {
    this.tokenizer = tokenizer;
    this.model = model;
  }

  // folder: of the bundle on this server. dtype: fp32, q8, q4 or q4f16. device: wasm or webgpu.
  static async load({ folder = "bundle", dtype = "q8", device = "wasm", threads, onProgress } = {}) {
    if (threads) env.backends.onnx.wasm.numThreads = threads;
    const tokenizer = await AutoTokenizer.from_pretrained(folder);
    const model = await AutoModelForCausalLM.from_pretrained(folder, {
      dtype,
      device,
      progress_callback: onProgress,
    });
    return new Chat(tokenizer, model);
  }

  // messages: [{role, content}]. Gives token ids of the prompt, the chat template applied where there is one.
  encode(messages) {
    if (this.tokenizer.chat_template) {
      return this.tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
    }
    return this.tokenizer(messages.map((message) => message.content).join("\n"));
  }

  // Greedy. onText is called with pieces as they come, onToken at each token; the result has ids, text and times in milliseconds.
  async answer(messages, options = {}) {
    return this.continue(this.encode(messages), options);
  }

  async continue(inputs, { max_new_tokens = 128, onText, onToken, ...options } = {}) {
    const times = [];
    const streamer = new TextStreamer(this.tokenizer, {
      skip_prompt: true,
      skip_special_tokens: true,
      callback_function: (text) => onText?.(text),
      token_callback_function: () => {
        times.push(performance.now());
        onToken?.();
      },
    });
    const started = performance.now();
    const output = await this.model.generate({ ...inputs, max_new_tokens, do_sample: false, streamer, ...options });
    const prompt = inputs.input_ids.dims[1];
    const ids = Array.from(output.data.slice(prompt), Number);
    const steps = times.slice(1).map((time, i) => time - times[i]);
    return {
      ids,
      prompt: Array.from(inputs.input_ids.data, Number),
      text: this.tokenizer.decode(ids, { skip_special_tokens: true }),
      first: (times[0] ?? performance.now()) - started,
      steps,
    };
  }

  // Ids of the last of a batch of texts, padded on the left, each going on by max_new_tokens.
  async batch(texts, max_new_tokens) {
    this.tokenizer.padding_side = "left";
    const inputs = this.tokenizer(texts, { padding: true });
    const output = await this.model.generate({ ...inputs, max_new_tokens, do_sample: false });
    const [rows, length] = output.dims;
    const start = inputs.input_ids.dims[1];
    return Array.from({ length: rows }, (_, row) =>
      Array.from(output.data.slice(row * length + start, (row + 1) * length), Number),
    );
  }

  // The same for token ids, as a test has them.
  fromIds(ids) {
    const data = BigInt64Array.from(ids, BigInt);
    return {
      input_ids: new Tensor("int64", data, [1, ids.length]),
      attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]),
    };
  }

  async dispose() {
    await this.model.dispose();
  }
}
