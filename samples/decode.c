/* Greedy decoding on onnxruntime's C API, by the contract that every bundle keeps (docs/architecture.md).
 *
 *     cc samples/decode.c -I INCLUDE -L LIB -lonnxruntime -o decode
 *     ./decode BUNDLE/model.onnx LAYERS KV_HEADS HEAD_DIM VOCAB COUNT TOKEN [TOKEN ...]
 *
 * The cache grows: the presents of one step are the pasts of the next. Headers and library are in onnxruntime's releases. */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

static const OrtApi *ort;
static OrtMemoryInfo *cpu;
static char names[2][256][48]; /* of pasts and presents, keys and values in turn */

static void check(OrtStatus *status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
    exit(1);
}

static OrtValue *tensor(void *data, size_t bytes, const int64_t *shape, size_t rank, ONNXTensorElementDataType type) {
    OrtValue *value = NULL;
    check(ort->CreateTensorWithDataAsOrtValue(cpu, data, bytes, shape, rank, type, &value));
    return value;
}

int main(int argc, char **argv) {
    if (argc < 8) return fprintf(stderr, "model layers kv_heads head_dim vocab count token...\n"), 2;
    const int layers = atoi(argv[2]), kv_heads = atoi(argv[3]), head_dim = atoi(argv[4]), vocab = atoi(argv[5]);
    const int count = atoi(argv[6]), prompt = argc - 7, caches = 2 * layers;
    if (caches > 256) return fprintf(stderr, "too many layers\n"), 2;
    int64_t *tokens = calloc(prompt + count, sizeof *tokens), *mask = calloc(prompt + count, sizeof *mask);
    for (int i = 0; i < prompt; i++) tokens[i] = atoll(argv[7 + i]);
    for (int i = 0; i < prompt + count; i++) mask[i] = 1;

    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "decode", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->CreateSession(env, argv[1], options, &session));
    check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &cpu));

    const char *inputs[258] = {"input_ids", "attention_mask"}, *outputs[257] = {"logits"};
    OrtValue *in[258], *out[257];
    const int64_t empty[] = {1, kv_heads, 0, head_dim};
    for (int i = 0; i < caches; i++) {
        const char *which = i % 2 ? "value" : "key";
        snprintf(names[0][i], 48, "past_key_values.%d.%s", i / 2, which);
        snprintf(names[1][i], 48, "present.%d.%s", i / 2, which);
        inputs[2 + i] = names[0][i], outputs[1 + i] = names[1][i];
        in[2 + i] = tensor(mask, 0, empty, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    }
    for (int step = 0, past = 0, seen = prompt; step < count; step++, past = seen++) {
        const int64_t ids[] = {1, seen - past}, all[] = {1, seen};
        in[0] = tensor(tokens + past, 8 * ids[1], ids, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
        in[1] = tensor(mask, 8 * seen, all, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
        for (int i = 0; i <= caches; i++) out[i] = NULL;
        check(ort->Run(session, NULL, inputs, (const OrtValue *const *)in, 2 + caches, outputs, 1 + caches, out));
        float *logits;
        check(ort->GetTensorMutableData(out[0], (void **)&logits));
        logits += (ids[1] - 1) * vocab; /* of the last token */
        int best = 0;
        for (int i = 1; i < vocab; i++) best = logits[i] > logits[best] ? i : best;
        tokens[seen] = best;
        printf("%d ", best);
        for (int i = 0; i < 2 + caches; i++) ort->ReleaseValue(in[i]);
        for (int i = 0; i < caches; i++) in[2 + i] = out[1 + i];
        ort->ReleaseValue(out[0]);
    }
    puts("");
    return 0;
}
