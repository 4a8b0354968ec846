// SPDX-License-Identifier: Apache-2.0
// How conversations are written, in the words that models were trained on. Nothing in a file is
// executed for it.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv_edge {

class ModelFile;

// The tables that Python reads too. {} is where a text goes.
struct ChatTemplate {
    std::string_view name, user, assistant;
    // What ends an answer, besides the token that ends a document.
    std::vector<std::string_view> stop;
    std::string_view system = "";   // empty where there is no such turn
    std::string_view opening = "";  // the system text where the user gives none
    bool think = false;             // whether its models may think before they answer
    bool exact = false;             // whether texts stay as they are, white space included

    // A text of the user or the system that cannot end its turn.
    std::string clean(std::string_view text) const;
    // What is read for a system text.
    std::string told(std::string_view text) const;
    // What is read for a user's text, to where the answer begins.
    std::string asked(std::string_view text) const;
    // What is read for an answer behind `asked`, with what ends its turn.
    std::string answered(std::string_view text) const;
};

std::span<const ChatTemplate> chat_templates();
// Null where none has this name.
const ChatTemplate* find_chat_template(std::string_view name);

// Whether the name of a model or its file is of the series G0 or G1, which may think.
bool is_g1(std::string_view name);
// The template that a name says; null where it says none.
const ChatTemplate* template_by_name(std::string_view name);
// The template whose words a Jinja text has; null where it has none of ours.
const ChatTemplate* template_by_words(std::string_view jinja);

// That of a model, and what says so: the names in its file or the file's own, the words of the chat
// template that it carries, or its tokenizer.
struct ChosenTemplate {
    const ChatTemplate* words;
    const char* source;  // "by its name"
};
ChosenTemplate choose_chat_template(const ModelFile& file);

// Without the white space at both ends, Unicode's too.
std::string_view stripped(std::string_view text);

}  // namespace rwkv_edge
