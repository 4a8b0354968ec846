// SPDX-License-Identifier: Apache-2.0
// The C interface: checks what a C program hands over, and turns exceptions into a status. The one
// file that catches everything and allocates by hand, because nothing may leave it but a pointer.
#define RWKV_EDGE_BUILD
#include "capi/rwkv_edge.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "generate.h"
#include "io/fingerprint.h"
#include "io/ggmf.h"
#include "io/model_file.h"
#include "kernels/dispatch.h"
#include "saved_state.h"
#include "session.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace rwkv_edge {

struct Loaded {
    std::shared_ptr<Runner> runner;
    std::unique_ptr<Tokenizer> tokenizer;  // null where the engine does not read the model's
    std::string why_not;

    const std::string& fingerprint() const {
        std::call_once(marked, [this] { mark = rwkv_edge::fingerprint(runner->model().file()); });
        return mark;
    }

private:
    mutable std::once_flag marked;
    mutable std::string mark;
};

}  // namespace rwkv_edge

struct rwkv_edge_model {
    std::shared_ptr<const rwkv_edge::Loaded> loaded;
};
struct rwkv_edge_session {
    std::shared_ptr<const rwkv_edge::Loaded> loaded;
    std::unique_ptr<rwkv_edge::Session> core;
    // Tokens that were read before those that the engine counts; none where that is not known.
    std::optional<int64_t> before = 0;
};
struct rwkv_edge_sampler {
    rwkv_edge::Sampler core;
};

namespace rwkv_edge {

namespace {

// A progress function asked for it.
class Cancelled : public std::runtime_error {
public:
    Cancelled() : std::runtime_error("cancelled by the caller") {}
};

std::string& last_error() {
    thread_local std::string text;
    return text;
}

rwkv_edge_status said(rwkv_edge_status status, const char* text) noexcept {
    try {
        last_error() = text;
    } catch (...) {
        last_error().clear();
    }
    return status;
}

template <class Body>
rwkv_edge_status guarded(Body&& body) noexcept {
    try {
        body();
        return RWKV_EDGE_OK;
    } catch (const Cancelled& e) {
        return said(RWKV_EDGE_CANCELLED, e.what());
    } catch (const FileError& e) {
        return said(RWKV_EDGE_FILE, e.what());
    } catch (const FormatError& e) {
        return said(RWKV_EDGE_FORMAT, e.what());
    } catch (const UnsupportedError& e) {
        return said(RWKV_EDGE_UNSUPPORTED, e.what());
    } catch (const std::invalid_argument& e) {
        return said(RWKV_EDGE_INVALID, e.what());
    } catch (const NoMemory& e) {
        return said(RWKV_EDGE_NO_MEMORY, e.what());
    } catch (const std::bad_alloc&) {
        return said(RWKV_EDGE_NO_MEMORY,
                    "no memory left for the engine (state, scratch memory, tables)");
    } catch (const std::exception& e) {
        return said(RWKV_EDGE_SYSTEM, e.what());
    } catch (...) {
        return said(RWKV_EDGE_SYSTEM, "an exception of the caller's own function");
    }
}

void require(bool there, const char* name) {
    if (!there) throw std::invalid_argument(cat(name, " is NULL"));
}

// The caller's structure, whose program may be of an older version.
template <class Options>
Options options_of(const Options* found, const Options& defaults, std::size_t first_size) {
    Options options = defaults;
    if (found == nullptr) return options;
    if (found->size < first_size || found->size > sizeof options)
        throw std::invalid_argument(cat("options: a size of ", found->size, " bytes, expected ",
                                        first_size, " to ", sizeof options,
                                        "; begin with the macro of the header"));
    std::memcpy(&options, found, found->size);
    return options;
}

template <class T>
std::span<const T> array(const T* values, std::size_t count, const char* name) {
    if (count > 0) require(values != nullptr, name);
    return {values, count};
}

rwkv_edge_options choosing(const rwkv_edge_options* found) {
    return options_of<rwkv_edge_options>(found, RWKV_EDGE_OPTIONS, sizeof(rwkv_edge_options));
}

SamplerOptions sampling_of(const rwkv_edge_options& o) {
    const auto banned = array(o.banned, o.n_banned, "banned");
    return {.temperature = o.temperature,
            .top_k = o.top_k,
            .top_p = o.top_p,
            .min_p = o.min_p,
            .typical_p = o.typical_p,
            .presence_penalty = o.presence_penalty,
            .frequency_penalty = o.frequency_penalty,
            .penalty_decay = o.penalty_decay,
            .penalty_window = o.penalty_window,
            .seed = o.seed,
            .banned = {banned.begin(), banned.end()}};
}

AnswerOptions answer_of(const rwkv_edge_options& o) {
    AnswerOptions options{.max_tokens = o.max_tokens};
    for (const char* stop : array(o.stop, o.n_stop, "stop")) {
        require(stop != nullptr, "a text of stop");
        options.stop.emplace_back(stop);
    }
    const auto tokens = array(o.stop_tokens, o.n_stop_tokens, "stop_tokens");
    options.stop_tokens.assign(tokens.begin(), tokens.end());
    return options;
}

std::shared_ptr<const ModelFile> open_file(const std::string& path) {
    char begin[4] = {};
    {
        const MappedFile file(path);
        const auto bytes = file.bytes();
        std::memcpy(begin, bytes.data(), std::min(bytes.size(), sizeof begin));
    }
    const std::string_view magic(begin, sizeof begin);
    if (magic == "fmgg") return open_ggmf(path);
    if (magic == "GGUF" || magic == "FUGG") return ModelFile::open(path);
    throw FormatError(cat(path,
                          ": neither a GGUF file nor a .bin file of rwkv.cpp; "
                          "`rwkv-edge convert` makes GGUF of other files"));
}

rwkv_edge_model* load(std::shared_ptr<const ModelFile> file, const rwkv_edge_model_options* found) {
    const auto options = options_of<rwkv_edge_model_options>(found, RWKV_EDGE_MODEL_OPTIONS,
                                                             sizeof(rwkv_edge_model_options));
    const std::string device = options.device == nullptr ? "cpu" : options.device;
    auto loaded = std::make_shared<Loaded>();
    loaded->runner =
        std::make_shared<Runner>(Model::open(file, make_backend(device, options.threads)));
    try {
        loaded->tokenizer = make_tokenizer(*file);
    } catch (const UnsupportedError& e) {
        loaded->why_not = e.what();
    } catch (const FormatError& e) {
        loaded->why_not = e.what();
    }
    const int64_t n_vocab = loaded->runner->model().config().n_vocab;
    if (loaded->tokenizer != nullptr && loaded->tokenizer->n_vocab() > n_vocab)
        throw FormatError(cat(file->path(), ": a vocabulary of ", loaded->tokenizer->n_vocab(),
                              " tokens, but the model has ", n_vocab, " embeddings"));
    return new rwkv_edge_model{std::move(loaded)};
}

const Tokenizer& tokenizer_of(const Loaded& loaded) {
    if (loaded.tokenizer == nullptr) throw UnsupportedError(loaded.why_not);
    return *loaded.tokenizer;
}

int64_t info_of(const Loaded& loaded, std::string_view name) {
    const Model& model = loaded.runner->model();
    const Config& config = model.config();
    if (name == "n_vocab") return config.n_vocab;
    if (name == "n_embd") return config.n_embd;
    if (name == "n_layer") return config.n_layer;
    if (name == "version") return config.arch[4] - '0';  // rwkv7a
    if (name == "gated") return model.file().find_tensor("blk.0.time_mix_gate.weight") != nullptr;
    if (name == "threads") return model.backend().threads();
    if (name == "state_size") return model.state_size();
    if (name == "memory_size") return model.memory_size();
    if (name == "tokenizer") return loaded.tokenizer != nullptr;
    throw std::invalid_argument(
        cat("name: found '", name,
            "', expected n_vocab, n_embd, n_layer, version, gated, threads, "
            "state_size, memory_size or tokenizer"));
}

rwkv_edge_finish finish_of(Finish finish) {
    switch (finish) {
        case Finish::Stop: return RWKV_EDGE_FINISH_STOP;
        case Finish::Length: return RWKV_EDGE_FINISH_LENGTH;
        case Finish::End: return RWKV_EDGE_FINISH_END;
        default: return RWKV_EDGE_FINISH_CANCELLED;
    }
}

// How long prompts are interrupted: the function gets no text, and may end the call.
Session::Progress interruptible(rwkv_edge_piece piece, void* user) {
    return [=](int64_t) {
        if (piece(user, "", 0) != 0) throw Cancelled();
    };
}

std::vector<int32_t> prompt_of(const rwkv_edge_session& session, std::string_view text) {
    std::vector<int32_t> ids = tokenizer_of(*session.loaded).encode(text);
    if (ids.empty() && session.core->tokens() == 0) {
        if (session.before != 0)
            throw std::invalid_argument(
                "the prompt is empty, and the last token's logits are not known");
        ids.push_back(kEndOfText);
    }
    return ids;
}

Finish chat(rwkv_edge_session& session, const char* system, std::string_view said,
            const rwkv_edge_options& options, rwkv_edge_piece piece, void* user) {
    Session& core = *session.core;
    const ChatTemplate* words = options.chat_template == nullptr
                                    ? choose_chat_template(core.model().file()).words
                                    : find_chat_template(options.chat_template);
    if (words == nullptr)
        throw std::invalid_argument(cat("chat_template: found '", options.chat_template,
                                        "', expected world, g1, raven, instruct or raw"));
    const std::string message = words->clean(said);
    if (message.empty() && !words->exact) throw std::invalid_argument("the message is empty");
    const Tokenizer& tokenizer = tokenizer_of(*session.loaded);
    AnswerOptions ends = answer_of(options);
    ends.stop.insert(ends.stop.end(), words->stop.begin(), words->stop.end());

    // All is done in a fork, so that a call that fails changes nothing.
    const std::unique_ptr<Session> ahead = core.fork();
    std::vector<int32_t> ids;
    if (system != nullptr) ids = tokenizer.encode(words->told(words->clean(system)));
    for (const int32_t id : tokenizer.encode(words->asked(message))) ids.push_back(id);
    if (ids.empty()) throw std::invalid_argument("the message is empty");
    ahead->feed(ids, Session::Logits::None, nullptr, interruptible(piece, user));
    const std::unique_ptr<Session> asked = ahead->fork();

    std::string answer;
    bool begun = words->exact;
    const auto hand_out = [&](std::string_view text) {
        answer += text;
        if (!begun) {
            const std::string_view end = stripped(text);
            if (end.empty()) return true;
            text.remove_prefix(static_cast<std::size_t>(end.data() - text.data()));
            begun = true;
        }
        const std::string copy(text);  // with a 0 behind it
        return piece(user, copy.c_str(), copy.size()) == 0;
    };
    const Generated made =
        generate(*ahead, tokenizer, {}, sampling_of(options), std::move(ends), {}, hand_out);
    // What the model remembers is the text, as another session would read it.
    const std::vector<int32_t> turn = tokenizer.encode(
        words->answered(words->exact ? std::string_view(answer) : stripped(answer)));
    std::span<const int32_t> rest = turn;
    if (turn.size() >= made.tokens.size() &&
        std::ranges::equal(made.tokens, rest.first(made.tokens.size())))
        rest = rest.subspan(made.tokens.size());
    else
        ahead->rewind(*asked);
    if (!rest.empty()) ahead->feed(rest, Session::Logits::None, nullptr);
    core.rewind(*ahead);
    return made.finish;
}

// The templates with a 0 behind each text.
struct CTemplate {
    explicit CTemplate(const ChatTemplate& from)
        : texts{std::string(from.name), std::string(from.system), std::string(from.opening),
                std::string(from.user), std::string(from.assistant)},
          stops(from.stop.begin(), from.stop.end()) {
        for (const std::string& stop : stops) pointers.push_back(stop.c_str());
        view = {texts[0].c_str(), texts[1].c_str(), texts[2].c_str(), texts[3].c_str(),
                texts[4].c_str(), pointers.data(),  pointers.size()};
    }
    CTemplate(const CTemplate&) = delete;
    std::string texts[5];
    std::vector<std::string> stops;
    std::vector<const char*> pointers;
    rwkv_edge_template view{};
};

const rwkv_edge_template* template_of(const ChatTemplate& wanted) {
    static const auto all = [] {
        std::deque<CTemplate> made;
        for (const ChatTemplate& each : chat_templates()) made.emplace_back(each);
        return made;
    }();
    return &all[static_cast<std::size_t>(&wanted - chat_templates().data())].view;
}

}  // namespace

}  // namespace rwkv_edge

using namespace rwkv_edge;

int rwkv_edge_version_number() { return RWKV_EDGE_VERSION_NUMBER; }

const char* rwkv_edge_isa() {
    const char* isa = nullptr;
    guarded([&] { isa = kernels().isa; });
    return isa;
}

const char* rwkv_edge_last_error() { return rwkv_edge::last_error().c_str(); }

rwkv_edge_status rwkv_edge_model_open(const char* path, const rwkv_edge_model_options* options,
                                      rwkv_edge_model** model) {
    return guarded([&] {
        require(path != nullptr, "path");
        require(model != nullptr, "model");
        *model = load(open_file(path), options);
    });
}

rwkv_edge_status rwkv_edge_model_open_fd(int fd, int64_t offset, int64_t length,
                                         const rwkv_edge_model_options* options,
                                         rwkv_edge_model** model) {
    return guarded([&] {
        require(model != nullptr, "model");
        *model = load(ModelFile::open(fd, offset, length), options);
    });
}

rwkv_edge_status rwkv_edge_model_open_memory(const void* bytes, size_t size,
                                             const rwkv_edge_model_options* options,
                                             rwkv_edge_model** model) {
    return guarded([&] {
        require(bytes != nullptr, "bytes");
        require(model != nullptr, "model");
        if (reinterpret_cast<std::uintptr_t>(bytes) % alignof(float) != 0)
            throw std::invalid_argument("bytes: found an address that is no multiple of 4");
        *model = load(
            ModelFile::parse({static_cast<const std::byte*>(bytes), size}, "the model in memory"),
            options);
    });
}

void rwkv_edge_model_free(rwkv_edge_model* model) { delete model; }

rwkv_edge_status rwkv_edge_model_info(const rwkv_edge_model* model, const char* name,
                                      int64_t* value) {
    return guarded([&] {
        require(model != nullptr, "model");
        require(name != nullptr, "name");
        require(value != nullptr, "value");
        *value = info_of(*model->loaded, name);
    });
}

rwkv_edge_status rwkv_edge_encode(const rwkv_edge_model* model, const char* text, size_t size,
                                  int32_t* tokens, size_t capacity, size_t* count) {
    return guarded([&] {
        require(model != nullptr, "model");
        require(count != nullptr, "count");
        if (size > 0) require(text != nullptr, "text");
        if (capacity > 0) require(tokens != nullptr, "tokens");
        const std::vector<int32_t> ids = tokenizer_of(*model->loaded).encode({text, size});
        std::copy_n(ids.begin(), std::min(capacity, ids.size()), tokens);
        *count = ids.size();
    });
}

rwkv_edge_status rwkv_edge_token_bytes(const rwkv_edge_model* model, int32_t token,
                                       const char** bytes, size_t* size) {
    return guarded([&] {
        require(model != nullptr, "model");
        require(bytes != nullptr, "bytes");
        require(size != nullptr, "size");
        const std::string_view found = tokenizer_of(*model->loaded).token_bytes(token);
        *bytes = found.data();
        *size = found.size();
    });
}

rwkv_edge_status rwkv_edge_session_new(const rwkv_edge_model* model, rwkv_edge_session** session) {
    return guarded([&] {
        require(model != nullptr, "model");
        require(session != nullptr, "session");
        auto core = std::make_unique<Session>(model->loaded->runner);
        *session = new rwkv_edge_session{model->loaded, std::move(core)};
    });
}

rwkv_edge_status rwkv_edge_session_fork(const rwkv_edge_session* session,
                                        rwkv_edge_session** copy) {
    return guarded([&] {
        require(session != nullptr, "session");
        require(copy != nullptr, "copy");
        *copy = new rwkv_edge_session{session->loaded, session->core->fork(), session->before};
    });
}

void rwkv_edge_session_free(rwkv_edge_session* session) { delete session; }

rwkv_edge_status rwkv_edge_feed(rwkv_edge_session* session, const int32_t* tokens, size_t count,
                                float* logits, rwkv_edge_progress progress, void* user) {
    return guarded([&] {
        require(session != nullptr, "session");
        const auto ids = array(tokens, count, "tokens");
        if (ids.empty()) throw std::invalid_argument("no tokens, expected at least one");
        Session::Progress tell;
        if (progress != nullptr)
            tell = [&](int64_t done) {
                if (progress(user, static_cast<size_t>(done), count) != 0) throw Cancelled();
            };
        session->core->feed(ids, logits == nullptr ? Session::Logits::None : Session::Logits::Last,
                            logits, tell);
    });
}

rwkv_edge_status rwkv_edge_state_get(const rwkv_edge_session* session, float* state, size_t count) {
    return guarded([&] {
        require(session != nullptr, "session");
        require(state != nullptr, "state");
        const Model& model = session->core->model();
        const auto size = static_cast<size_t>(model.state_size());
        if (count != size && count != static_cast<size_t>(model.memory_size()))
            throw std::invalid_argument(cat("count: found ", count, ", expected ", size,
                                            " (state_size) or ", model.memory_size(),
                                            " (memory_size)"));
        // First what may not be there.
        if (count > size) session->core->copy_output({state + size, count - size});
        session->core->copy_state({state, size});
    });
}

rwkv_edge_status rwkv_edge_state_set(rwkv_edge_session* session, const float* state, size_t count) {
    return guarded([&] {
        require(session != nullptr, "session");
        const std::span<const float> values = array(state, count, "state");
        if (values.empty()) {
            session->core->reset();
            session->before = 0;
            return;
        }
        const auto size = static_cast<size_t>(session->core->model().state_size());
        if (count == static_cast<size_t>(session->core->model().memory_size()))
            session->core->set_state(values.first(size), values.subspan(size));
        else
            session->core->set_state(values);
        session->before.reset();
    });
}

rwkv_edge_status rwkv_edge_state_save(const rwkv_edge_session* session, const char* path) {
    return guarded([&] {
        require(session != nullptr, "session");
        require(path != nullptr, "path");
        const Session& core = *session->core;
        const Model& model = core.model();
        SavedState saved{.state = std::vector<float>(static_cast<size_t>(model.state_size()))};
        core.copy_state(saved.state);
        if (core.tokens() > 0) {
            saved.output.resize(static_cast<size_t>(model.config().n_embd));
            core.copy_output(saved.output);
        }
        if (session->before) saved.tokens = *session->before + core.tokens();
        save_state(path, model, session->loaded->fingerprint(), saved);
    });
}

rwkv_edge_status rwkv_edge_state_load(rwkv_edge_session* session, const char* path, int any_model) {
    return guarded([&] {
        require(session != nullptr, "session");
        require(path != nullptr, "path");
        const SavedState saved = load_state(path, session->core->model(),
                                            any_model != 0 ? "" : session->loaded->fingerprint());
        session->core->set_state(saved.state, saved.output);
        session->before = saved.tokens;
        // The engine counts the token whose output it has.
        if (session->before && !saved.output.empty()) --*session->before;
    });
}

rwkv_edge_status rwkv_edge_sampler_new(const rwkv_edge_options* options,
                                       rwkv_edge_sampler** sampler) {
    return guarded([&] {
        require(sampler != nullptr, "sampler");
        *sampler = new rwkv_edge_sampler{Sampler(sampling_of(choosing(options)))};
    });
}

rwkv_edge_status rwkv_edge_sampler_next(rwkv_edge_sampler* sampler, const float* logits,
                                        size_t n_vocab, int32_t* token) {
    return guarded([&] {
        require(sampler != nullptr, "sampler");
        require(token != nullptr, "token");
        const int32_t chosen = sampler->core.sample(array(logits, n_vocab, "logits"));
        sampler->core.accept(chosen);
        *token = chosen;
    });
}

void rwkv_edge_sampler_free(rwkv_edge_sampler* sampler) { delete sampler; }

rwkv_edge_status rwkv_edge_generate(rwkv_edge_session* session, const char* prompt, size_t size,
                                    const rwkv_edge_options* options, rwkv_edge_piece piece,
                                    void* user, rwkv_edge_finish* finish) {
    return guarded([&] {
        require(session != nullptr, "session");
        require(piece != nullptr, "piece");
        if (size > 0) require(prompt != nullptr, "prompt");
        const rwkv_edge_options asked = choosing(options);
        const auto hand_out = [&](std::string_view text) {
            const std::string copy(text);  // with a 0 behind it
            return piece(user, copy.c_str(), copy.size()) == 0;
        };
        const Generated made = generate(*session->core, tokenizer_of(*session->loaded),
                                        prompt_of(*session, {prompt, size}), sampling_of(asked),
                                        answer_of(asked), interruptible(piece, user), hand_out);
        if (finish != nullptr) *finish = finish_of(made.finish);
    });
}

rwkv_edge_status rwkv_edge_chat(rwkv_edge_session* session, const char* system, const char* text,
                                const rwkv_edge_options* options, rwkv_edge_piece piece, void* user,
                                rwkv_edge_finish* finish) {
    return guarded([&] {
        require(session != nullptr, "session");
        require(text != nullptr, "text");
        require(piece != nullptr, "piece");
        const Finish found = chat(*session, system, text, choosing(options), piece, user);
        if (finish != nullptr) *finish = finish_of(found);
    });
}

rwkv_edge_status rwkv_edge_template_find(const rwkv_edge_model* model, const char* name,
                                         const rwkv_edge_template** found) {
    return guarded([&] {
        require(found != nullptr, "found");
        if ((model == nullptr) == (name == nullptr))
            throw std::invalid_argument("expected a model or a name, and the other one NULL");
        const ChatTemplate* wanted =
            name == nullptr ? choose_chat_template(model->loaded->runner->model().file()).words
                            : find_chat_template(name);
        if (wanted == nullptr)
            throw std::invalid_argument(
                cat("name: found '", name, "', expected world, g1, raven, instruct or raw"));
        *found = template_of(*wanted);
    });
}
