// SPDX-License-Identifier: Apache-2.0
// Completes a text, and shows how C++ holds what C gives: complete MODEL.gguf TEXT
#include <rwkv_edge.h>

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

void check(rwkv_edge_status status) {
    if (status != RWKV_EDGE_OK) throw std::runtime_error(rwkv_edge_last_error());
}

template <auto Free>
struct Freed {
    template <class T>
    void operator()(T* object) const {
        Free(object);
    }
};
using Model = std::unique_ptr<rwkv_edge_model, Freed<rwkv_edge_model_free>>;
using Session = std::unique_ptr<rwkv_edge_session, Freed<rwkv_edge_session_free>>;

std::string complete(const Session& session, const std::string& prompt,
                     const rwkv_edge_options& options) {
    std::string text;
    const auto add = [](void* user, const char* piece, std::size_t size) {
        static_cast<std::string*>(user)->append(piece, size);
        return 0;
    };
    check(rwkv_edge_generate(session.get(), prompt.data(), prompt.size(), &options, add, &text,
                             nullptr));
    return text;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 3) throw std::runtime_error("usage: complete MODEL.gguf TEXT");
    rwkv_edge_model* opened = nullptr;
    check(rwkv_edge_model_open(argv[1], nullptr, &opened));
    const Model model(opened);
    rwkv_edge_session* made = nullptr;
    check(rwkv_edge_session_new(model.get(), &made));
    const Session session(made);
    rwkv_edge_options options = RWKV_EDGE_OPTIONS;
    const char* stop = "\n\n";
    options.stop = &stop;
    options.n_stop = 1;
    options.temperature = 0;
    std::cout << complete(session, argv[2], options) << '\n';
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
