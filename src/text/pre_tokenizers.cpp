#include "text/pre_tokenizers.h"

#include "base/error.h"
#include "text/tokenizer_json.h"

namespace parallm {

namespace {

// The splits are those of the models' own tokenizer.json files, where
// llama.cpp's llama-vocab.cpp names them, else the ones it has instead.
constexpr const char* gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* llama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* minicpm5 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* jais2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})";
constexpr const char* qwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* qwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* ufakzeka = R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* seed_coder =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* bailing =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* exaone_moe =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* tekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* youtu =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* gpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kimi =
    R"([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* deepseek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* spark =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* bloom = R"( ?[^(\s|.,!?…。，、।۔،)]+)";
constexpr const char* deepseek_letters =
    R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)";
constexpr const char* deepseek_marks = R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)";
constexpr const char* deepseek_cjk = R"([一-龥ࠀ-一가-퟿]+)";
constexpr const char* cjk_kana = R"([一-龥぀-ゟ゠-ヿ]+)";
constexpr const char* youtu_cjk =
    R"([가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+)";

const std::vector<PreTokenizer>& known() {
  static const std::vector<PreTokenizer> all = {
      {.name = "smollm", .digits = true},
      {.name = "starcoder", .digits = true},
      {.name = "refact", .digits = true},
      {.name = "command-r", .digits = true},
      {.name = "codeshell", .digits = true},
      {.name = "exaone", .digits = true},
      {.name = "minerva-7b", .digits = true},
      {.name = "mellum2", .digits = true},
      {.name = "gpt-2"},
      {.name = "phi-2"},
      {.name = "olmo"},
      {.name = "mpt"},
      {.name = "jais"},
      {.name = "trillion"},
      {.name = "granite-docling"},
      {.name = "gigachat"},
      {.name = "a.x-4.0"},
      {.name = "mellum"},
      {.name = "exaone4"},
      {.name = "jina-es"},
      {.name = "jina-de"},
      {.name = "jina-v2-es"},
      {.name = "jina-v2-de"},
      {.name = "modern-bert"},
      {.name = "llama-bpe", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "llama3", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "llama-v3", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "falcon3", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "falcon-h1", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "pixtral", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "midm-2.0", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "lfm2", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "jina-v5-nano", .splits = {llama3}, .ignore_merges = true, .add_bos = true},
      {.name = "glm4", .splits = {llama3}, .ignore_merges = true},
      {.name = "glm5", .splits = {llama3}, .ignore_merges = true},
      {.name = "dbrx", .splits = {llama3}},
      {.name = "smaug-bpe", .splits = {llama3}},
      {.name = "chatglm-bpe", .splits = {llama3}},
      {.name = "minicpm5", .splits = {R"(\p{N}{1,3})", minicpm5}, .ignore_merges = true},
      {.name = "jais-2", .splits = {jais2}},
      {.name = "qwen2", .splits = {qwen2}, .nfc = true},
      {.name = "deepseek-r1-qwen", .splits = {qwen2}, .nfc = true},
      {.name = "qwen35", .splits = {qwen35}, .nfc = true},
      {.name = "stablelm2", .splits = {qwen2}},
      {.name = "kormo", .splits = {qwen2}},
      {.name = "f2llmv2", .splits = {qwen2}},
      {.name = "megrez", .splits = {qwen2}},
      {.name = "hunyuan", .splits = {qwen2}},
      {.name = "solar-open", .splits = {qwen2}},
      {.name = "grok-2", .splits = {qwen2}},
      {.name = "laguna", .splits = {R"([^\n]+|[\n]+)", qwen2}},
      {.name = "ufakzeka", .splits = {ufakzeka}},
      {.name = "seed-coder", .splits = {seed_coder}},
      {.name = "bailingmoe", .splits = {bailing}},
      {.name = "bailingmoe2", .splits = {bailing}},
      {.name = "llada-moe", .splits = {bailing}},
      {.name = "exaone-moe", .splits = {exaone_moe}},
      {.name = "tekken", .splits = {tekken}, .ignore_merges = true, .add_bos = true},
      {.name = "gpt-4o", .splits = {gpt4o}},
      {.name = "llama4", .splits = {gpt4o}},
      {.name = "kanana2", .splits = {gpt4o}},
      {.name = "talkie", .splits = {gpt4o}},
      {.name = "minimax-m2", .splits = {gpt4o}},
      {.name = "tiny_aya", .splits = {R"(\d{1,3}(?=(?:\d{3})*\b))", gpt4o}},
      {.name = "cohere2moe", .splits = {R"(\d{1,3}(?=(?:\d{3})*\b))", gpt4o}},
      {.name = "kimi-k2", .splits = {kimi}},
      {.name = "deepseek-v3", .splits = {R"(\p{N}{1,3})", cjk_kana, deepseek3}},
      {.name = "hunyuan-dense", .splits = {R"(\p{N}{1,3})", cjk_kana, deepseek3}},
      {.name = "joyai-llm", .splits = {R"(\p{N}{1,3})", cjk_kana, deepseek3}},
      {.name = "hy_v4", .splits = {R"(\p{N}{1,3})", cjk_kana, deepseek3}},
      {.name = "spark2_5", .splits = {R"(\p{N}{1,3})", cjk_kana, spark, R"(\p{N})"}},
      {.name = "youtu", .splits = {youtu_cjk, youtu}, .ignore_merges = true},
      {.name = "deepseek-llm",
       .splits = {R"([\r\n])", deepseek_letters, deepseek_marks, R"(\s+$)", deepseek_cjk, R"(\p{N}+)"}},
      {.name = "deepseek-coder", .splits = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", deepseek_cjk, R"(\p{N})"}},
      {.name = "falcon", .splits = {R"([\p{P}\$\+<=>\^~\|`]+)", gpt2, "[0-9][0-9][0-9]"}},
      {.name = "bloom", .splits = {bloom}},
      {.name = "poro-chat", .splits = {bloom}},
      {.name = "gpt3-finnish", .splits = {bloom}},
      {.name = "viking", .splits = {bloom, R"(\p{N})"}},
      {.name = "chameleon",
       .splits =
           {R"(<sentinel:[0-9]+>)",
            R"((IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z)",
            R"(([\t\n]|    |  ))",
            R"(\p{N})",
            R"([\p{P}!-/:-@\[-`{-~])",
            gpt2},
       .add_bos = true},
      // What llama.cpp does where a file names no kind of its own.
      {.name = "default", .splits = {R"([\p{P}\$\+<=>\^~\|]+)", gpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
  };
  return all;
}

} // namespace

const PreTokenizer& find_pre_tokenizer(const std::string& name) {
  std::string names;
  for (const PreTokenizer& pre : known()) {
    if (name == pre.name || (name.empty() && pre.name == std::string("default"))) {
      return pre;
    }
    names += names.empty() ? pre.name : std::string(", ") + pre.name;
  }
  fail(Kind::invalid, "[gguf_tokenizer] tokenizer.ggml.pre is none of {}; got \"{}\"", names, name);
}

std::string pre_tokenizer_json(const PreTokenizer& pre, bool space_first) {
  std::vector<std::string> steps;
  if (pre.digits) {
    steps.push_back(R"({"type":"Digits","individual_digits":true})");
  }
  for (const char* split : pre.splits) {
    steps.push_back(fmt::format(
        R"({{"type":"Split","pattern":{{"Regex":{}}},"behavior":"Isolated","invert":false}})", quoted(split)));
  }
  steps.push_back(fmt::format(
      R"({{"type":"ByteLevel","add_prefix_space":{},"trim_offsets":true,"use_regex":{}}})",
      space_first,
      pre.splits.empty()));
  return sequence_json("pretokenizers", steps);
}

} // namespace parallm
