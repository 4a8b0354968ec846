// SPDX-License-Identifier: Apache-2.0
// The loop that makes text: read, choose, feed. Python has one of its own (generation.py), which
// may draft tokens, wait in asyncio and share steps; what a text consists of, Answer says to both.
#pragma once

#include <functional>
#include <span>
#include <string_view>

#include "sampler.h"
#include "session.h"
#include "text/answer.h"
#include "text/tokenizer.h"

namespace rwkv_edge {

struct Generated {
    Finish finish = Finish::None;
    std::vector<int32_t> tokens = {};  // that the text consists of; of the last one perhaps a part
};

// Feeds `prompt`, or goes on after the last token where it is empty, and hands out the text that
// follows, piece by piece, until `piece` returns false or the text ends. Then the session stands
// exactly where the text ends that was handed out, also when an exception ends the call; until the
// prompt is read, it stays where it was. Tokens without text are never chosen.
// Throws what Session::feed, Session::logits, Sampler, Answer and the functions throw.
Generated generate(Session& session, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                   SamplerOptions sampling, AnswerOptions answer, const Session::Progress& progress,
                   const std::function<bool(std::string_view)>& piece);

}  // namespace rwkv_edge
