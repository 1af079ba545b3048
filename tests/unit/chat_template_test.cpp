#include "text/chat_template.h"

#include "base/error.h"

#include <doctest/doctest.h>

#include <regex>
#include <string>

using namespace parallm;

namespace {

std::string render(const std::string& source, const std::string& variables, const std::string& special = "{}") {
  return ChatTemplate(source, special).render(variables);
}

std::string error(const std::string& source, const std::string& variables) {
  try {
    render(source, variables);
  } catch (const Error& e) {
    CHECK(e.kind == Kind::invalid);
    return e.what();
  }
  return "none";
}

const std::string talk =
    R"({"messages":[{"role":"system","content":" Be brief. "},{"role":"user","content":"Hi"},)"
    R"({"role":"assistant","content":"Hello!"},{"role":"user","content":"Bye"}],"add_generation_prompt":true})";

} // namespace

// Each was rendered by Jinja2 3.1.6 set up as transformers sets it up, with
// these variables.
TEST_CASE("chat_template: what Python's Jinja writes") {
  const std::string variables =
      R"J({"x": {"b": 1, "a": [1, 2.5, null, true, "q'\"<&>\u00e9\n"]}, "s": "  Hi there  ", "n": null, "t": true, "f": 1e+20, "g": 1e-05, "h": 100000.0, "l": ["a", "b"], "e": [], "d": {}, "messages": [{"role": "system"}]})J";
  struct Case {
    const char* source;
    const char* text;
  };
  const Case cases[] = {
      {R"J({{ x }})J", R"J({'b': 1, 'a': [1, 2.5, None, True, 'q\'"<&>é\n']})J"},
      {R"J({{ x | tojson }})J", R"J({"b": 1, "a": [1, 2.5, null, true, "q'\"<&>é\n"]})J"},
      {R"J({{ x | tojson(indent=2) }})J",
       R"J({
  "b": 1,
  "a": [
    1,
    2.5,
    null,
    true,
    "q'\"<&>é\n"
  ]
})J"},
      {R"J({{ x | tojson(indent=2, sort_keys=true) }})J",
       R"J({
  "a": [
    1,
    2.5,
    null,
    true,
    "q'\"<&>é\n"
  ],
  "b": 1
})J"},
      {R"J({{ x | tojson(ensure_ascii=true, separators=(',', ':')) }})J",
       R"J({"b":1,"a":[1,2.5,null,true,"q'\"<&>\u00e9\n"]})J"},
      {R"J({{ [e, d] | tojson(indent=4) }})J",
       R"J([
    [],
    {}
])J"},
      {R"J({{ n }}|{{ t }}|{{ f }}|{{ g }}|{{ h }}|{{ missing }}|{{ e }}|{{ d }})J",
       R"J(None|True|1e+20|1e-05|100000.0||[]|{})J"},
      {R"J({{ [f, g, h] | tojson }})J", R"J([1e+20, 1e-05, 100000.0])J"},
      {R"J({{ x.a | string }}|{{ 5 | string }}|{{ n | string }})J", R"J([1, 2.5, None, True, 'q\'"<&>é\n']|5|None)J"},
      {R"J({{ s | trim }}|{{ s.strip() }}|{{ s.lstrip() }}|{{ 'xxhixx' | trim('x') }}|{{ 12 | trim }})J",
       R"J(Hi there|Hi there|Hi there  |hi|12)J"},
      {R"J({{ n is iterable }}{{ l is iterable }}{{ s is iterable }}{{ missing is iterable }}{{ 1 is iterable }}{{ d is iterable }})J",
       R"J(FalseTrueTrueTrueFalseTrue)J"},
      {R"J({{ s is string }}{{ d is mapping }}{{ l is sequence }}{{ n is none }}{{ missing is defined }}{{ tools is none }})J",
       R"J(TrueTrueTrueTrueFalseTrue)J"},
      {R"J({% generation %}in{% endgeneration %}|{%- generation -%} a {%- endgeneration -%}|)J", R"J(in|a|)J"},
      {R"J({% set v = 1 %}{% generation %}{% set v = 2 %}{{ v }}{% endgeneration %}{{ v }})J", R"J(21)J"},
      {R"J({% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %})J",
       R"J(0134)J"},
      {R"J({% set ns = namespace(k=0) %}{% for i in l %}{% set ns.k = ns.k + 1 %}{% endfor %}{{ ns.k }})J", R"J(2)J"},
      {R"J({{ l | join(', ') }}|{{ [1, none, true, 2.0] | join('-') }})J", R"J(a, b|1-None-True-2.0)J"},
      {R"J({{ s[::-1] }}|{{ l[-1] }}|{{ l[:1] }}|{{ s.split() }}|{{ 'a,b,c'.split(',')[-1] }})J",
       R"J(  ereht iH  |b|['a']|['Hi', 'there']|c)J"},
      {R"J({{ 'a</think>b</think>c'.split('</think>')[-1] }}|{{ 'abc'.startswith('ab') }}|{{ 'x'.upper() }}|{{ 'ab cd'.title() }})J",
       R"J(c|True|X|Ab Cd)J"},
      {R"J({% for k, w in x.items() %}{{ k }}={{ w }};{% endfor %})J",
       R"J(b=1;a=[1, 2.5, None, True, 'q\'"<&>é\n'];)J"},
      {R"J({% for m in l %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %})J",
       R"J(0TrueFalseb;1FalseTruea;)J"},
      {R"J({% macro f(a, b='z') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=none) }})J", R"J([1z][1None])J"},
      {R"J({{ 7 // 2 }}|{{ 7 / 2 }}|{{ 2 ** 3 }}|{{ 7 % 3 }}|{{ -7 // 2 }}|{{ 1 / 3 }})J",
       R"J(3|3.5|8|1|-4|0.3333333333333333)J"},
      {R"J({{ n.foo is defined }}|{{ missing is not none }}|{{ (n or 'dflt') }}|{{ missing | default('q') }}|{{ n | default('q', true) }})J",
       R"J(False|True|dflt|q|q)J"},
      {R"J({{ l | length }}|{{ l | first }}|{{ l | last }}|{{ l + ['c'] }}|{{ 'a' in l }}|{{ 'b' in x }}|{{ not l }})J",
       R"J(2|a|b|['a', 'b', 'c']|True|True|False)J"},
      {R"J({{ [{'a': 1, 'b': 'x'}] | selectattr('a', 'equalto', 1) | list }}|{{ l | map('upper') | list }})J",
       R"J([{'a': 1, 'b': 'x'}]|['A', 'B'])J"},
      {R"J({{ 1.5 | int }}|{{ '3' | int }}|{{ 2.567 | round(1) }}|{{ 'a\nb' | indent(2) }}|{{ 1 == 1.0 }}|{{ 'x' * 3 }})J",
       R"J(1|3|2.6|a
  b|True|xxx)J"},
      {R"J({{ '<b>&' }}|{{ '<b>' | e }}|{{ "it's" }}|{{ ["it's"] }}|{{ ['a"b'] }}|{{ ["\\"] }})J",
       R"J(<b>&|&lt;b&gt;|it's|["it's"]|['a"b']|['\\'])J"},
      {R"J({% if messages[0]['role'] == 'system' %}S{% else %}N{% endif %})J", R"J(S)J"},
      {R"J({{ s.find('H') }}|{{ 'aXb'.replace('X', '-') }}|{{ 'abc' | replace('b', '') }}|{{ 'abc' | upper | lower | capitalize }})J",
       R"J(2|a-b|ac|Abc)J"},
      {R"J({{ [1,2,3] | sum }}|{{ l | unique | list }}|{{ [[1,2],[3]] }}|{{ l is not string and l is iterable }})J",
       R"J(6|['a', 'b']|[[1, 2], [3]]|True)J"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.source);
    CHECK(render(c.source, variables) == c.text);
  }
}

TEST_CASE("chat_template: ChatML") {
  CHECK(
      render(
          R"({%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\n' + m.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %})",
          talk) ==
      "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"
      "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("chat_template: Llama 3, with its special tokens") {
  CHECK(
      render(
          R"({{ bos_token }}{% if tools is not none %}TOOLS{% endif %}
{% for m in messages %}
{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ (m.content | trim) ~ '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %})",
          talk,
          R"({"bos_token":"<|begin_of_text|>"})") ==
      "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
      "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
      "Hello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST_CASE("chat_template: Gemma renames a role and refuses one") {
  const std::string gemma =
      R"({{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %})";
  CHECK(error(gemma, talk) == "[chat_template] System role not supported");
  CHECK(
      render(
          gemma,
          R"({"messages":[{"role":"assistant","content":" a "}],"bos_token":"<b>"})",
          R"({"bos_token":"<special>"})") == "<b><start_of_turn>model\na<end_of_turn>\n");
}

TEST_CASE("chat_template: Mistral's turns must alternate") {
  const std::string mistral =
      R"({%- for m in messages %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate: ' + m['role']) }}{%- endif %}
{%- if m['role'] == 'user' %}{{- '[INST] ' + m['content'] + '[/INST]' }}
{%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}{%- endfor %})";
  CHECK(error(mistral, talk) == "[chat_template] roles must alternate: system");
  CHECK(
      render(
          mistral,
          R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"eos_token":"</s>"})") ==
      "[INST] a[/INST] b</s>");
}

TEST_CASE("chat_template: the day") {
  CHECK(
      std::regex_match(render("{{ strftime_now('%Y-%m-%d') }}", "{}"), std::regex("20[0-9]{2}-[01][0-9]-[0-3][0-9]")));
  CHECK(render("{{ strftime_now('') }}", "{}") == "");
}

TEST_CASE("chat_template: errors") {
  CHECK(error("{% if %}", "{}").starts_with("[chat_template] "));
  CHECK(error("{{ x.y.z }}", "{}").starts_with("[chat_template] "));
  CHECK(error("x", "[]") == "[chat_template] variables: not a JSON object");
  CHECK(error("x", "{").starts_with("[chat_template] variables: "));
  // A template that runs away ends, and what users wrote stays out of the
  // error's text.
  std::string text = error(
      "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}", R"({"secret":"hush"})");
  CHECK(text.find("fuel") != std::string::npos);
  CHECK(text.find("hush") == std::string::npos);
}
