// SPDX-License-Identifier: Apache-2.0
#include "text/chat_template.h"

#include <algorithm>
#include <array>

#include "io/model_file.h"

namespace rwkv_edge {

namespace {

constexpr std::string_view kPlace = "{}", kTurnEnd = "\n\n";

// "Bob:" and the like stop an answer wherever they begin a line. Whatever a model was trained on,
// it must not go on there.
const ChatTemplate kTemplates[] = {
    // One paragraph: some models go on with anything after it.
    {"world",
     "User: {}\n\n",
     "Assistant: {}\n\n",
     {"\n\n", "\n\nUser:", "\n\nSystem:", "\n\nAssistant:", "\nUser:", "\nSystem:", "\nAssistant:"},
     "System: {}\n\n"},
    // G0 and G1 answer in paragraphs. A line of an answer may begin with "User:" (a dialogue, a
    // file); their turns begin after a blank line.
    {"g1",
     "User: {}\n\n",
     "Assistant: {}\n\n",
     {"\n\nUser:", "\n\nSystem:", "\n\nAssistant:"},
     "System: {}\n\n",
     "",
     true},
    // RWKV-4 Pile and Raven.
    {"raven",
     "Bob: {}\n\n",
     "Alice: {}\n\n",
     {"\n\n", "\n\nBob:", "\n\nAlice:", "\nBob:", "\nAlice:"},
     "\n{}\n\n",
     "The following is a conversation between Bob and his friend Alice. Alice is intelligent, "
     "friendly and knows a lot; her answers are detailed and correct."},
    // RWKV-4 Raven, for single tasks.
    {"instruct",
     "# Instruction:\n{}\n\n",
     "# Response:\n{}\n\n",
     {"\n\n# Instruction:", "\n\n# Response:", "\n# Instruction:", "\n# Response:"},
     "{}\n\n",
     "Below is an instruction that describes a task. Write a response that appropriately "
     "completes the request."},
    {"raw", "{}", "{}", {}, "", "", false, true},
};

constexpr std::string_view kNameKeys[] = {"general.name", "general.basename", "general.finetune"};

bool is_letter_or_digit(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_letter(char c) { return is_letter_or_digit(c) && (c < '0' || c > '9'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string lower(std::string_view text) {
    std::string out(text);
    for (char& c : out)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return out;
}

bool has(std::string_view text, std::string_view word) {
    return text.find(word) != std::string_view::npos;
}

// With LF for every end of a line.
std::string newlines(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\r') {
            out += text[i];
            continue;
        }
        out += '\n';
        if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    }
    return out;
}

std::string replaced(std::string_view pattern, std::string_view text) {
    std::string out(pattern);
    if (const auto at = out.find(kPlace); at != std::string::npos)
        out.replace(at, kPlace.size(), text);
    return out;
}

// The white space that Python's strip() takes away, in UTF-8.
constexpr std::array<std::string_view, 29> kBlanks = {
    "\t",           "\n",           "\v",           "\f",           "\r",
    "\x1c",         "\x1d",         "\x1e",         "\x1f",         " ",
    "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81",
    "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86",
    "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8",
    "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};

}  // namespace

std::string_view stripped(std::string_view text) {
    const auto begins = [&](std::string_view blank) { return text.starts_with(blank); };
    const auto ends = [&](std::string_view blank) { return text.ends_with(blank); };
    for (auto found = kBlanks.begin();
         (found = std::ranges::find_if(kBlanks, begins)) != kBlanks.end();)
        text.remove_prefix(found->size());
    for (auto found = kBlanks.begin();
         (found = std::ranges::find_if(kBlanks, ends)) != kBlanks.end();)
        text.remove_suffix(found->size());
    return text;
}

std::string ChatTemplate::clean(std::string_view text) const {
    if (exact) return std::string(text);
    std::string lines = newlines(text);
    if (has(user, kTurnEnd))
        lines.erase(std::unique(lines.begin(), lines.end(),
                                [](char a, char b) { return a == '\n' && b == '\n'; }),
                    lines.end());
    return std::string(stripped(lines));
}

std::string ChatTemplate::told(std::string_view text) const {
    return text.empty() ? std::string() : replaced(system, text);
}

std::string ChatTemplate::asked(std::string_view text) const {
    std::string lead(assistant.substr(0, assistant.find(kPlace)));
    lead.erase(lead.find_last_not_of(' ') + 1);
    return replaced(user, text) + lead;
}

// Models were trained on ": text", and write the blank themselves.
std::string ChatTemplate::answered(std::string_view text) const {
    const std::size_t place = assistant.find(kPlace);
    const std::string_view lead = assistant.substr(0, place);
    std::string out;
    if (!text.empty()) out.append(lead.substr(lead.find_last_not_of(' ') + 1)).append(text);
    return out.append(assistant.substr(place + kPlace.size()));
}

std::span<const ChatTemplate> chat_templates() { return kTemplates; }

const ChatTemplate* find_chat_template(std::string_view name) {
    for (const ChatTemplate& each : kTemplates)
        if (each.name == name) return &each;
    return nullptr;
}

// A word g0 or g1, perhaps with a letter and then a digit: "rwkv7-g1a2-0.4b".
bool is_g1(std::string_view name) {
    for (std::size_t i = 0; i + 1 < name.size(); ++i) {
        if ((name[i] != 'g' && name[i] != 'G') || (name[i + 1] != '0' && name[i + 1] != '1'))
            continue;
        if (i > 0 && is_letter_or_digit(name[i - 1])) continue;
        std::size_t end = i + 2;
        if (end < name.size() && is_letter(name[end])) {
            ++end;
            if (end < name.size() && is_digit(name[end])) ++end;
        }
        if (end == name.size() || !is_letter_or_digit(name[end])) return true;
    }
    return false;
}

const ChatTemplate* template_by_name(std::string_view name) {
    if (is_g1(name)) return find_chat_template("g1");
    const std::string text = lower(name);
    if (has(text, "raven") || has(text, "pile")) return find_chat_template("raven");
    return has(text, "world") ? find_chat_template("world") : nullptr;
}

const ChatTemplate* template_by_words(std::string_view jinja) {
    if (has(jinja, "User:") && has(jinja, "Assistant:"))
        return find_chat_template(has(jinja, "<think") ? "g1" : "world");
    return has(jinja, "Bob:") && has(jinja, "Alice:") ? find_chat_template("raven") : nullptr;
}

ChosenTemplate choose_chat_template(const ModelFile& file) {
    const auto text = [&](std::string_view key) -> std::string_view {
        const MetaValue* value = file.find(key);
        return value != nullptr && value->type == ValueType::String ? value->text()
                                                                    : std::string_view();
    };
    for (const std::string_view key : kNameKeys)
        if (const auto* found = template_by_name(text(key))) return {found, "by its name"};
    const std::string_view path = file.path();
    if (const auto* found = template_by_name(path.substr(path.find_last_of("/\\") + 1)))
        return {found, "by its name"};
    if (const auto* found = template_by_words(text("tokenizer.chat_template")))
        return {found, "by its chat template"};
    // Pile models are the only ones with a Hugging Face tokenizer.
    const bool pile = text("tokenizer.ggml.model") == "gpt2";
    return {find_chat_template(pile ? "raven" : "world"), "by its tokenizer"};
}

}  // namespace rwkv_edge
