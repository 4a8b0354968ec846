# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge serve`: one model, many conversations, over HTTP. It needs the extra `server`.

    request.py    what is asked for and what comes, in no dialect's words; how to add a dialect
    fields.py     JSON of strangers; Refused, the error that a client gets
    openai.py     OpenAI's dialect
    responses.py  OpenAI's other one, Responses
    anthropic.py  Anthropic's: Messages
    ollama.py     Ollama's
    native.py     states, tokens, props and metrics
    scores.py     how likely continuations are, an endpoint of ours
    inside.py     the app called without a socket
    http.py       the door of each path; bodies, streams, clients that go away
    guard.py      Host, Origin, key: who may come in
    static.py     the page, whose files are in page/
    app.py        all of that as one ASGI app
    serve.py      the app on a socket
    service.py    what a dialect may ask for
    compose.py    from a request to tokens
    program.py    a request in the engine's thread
    calls.py      calls of tools in a text
    scheduler.py  the engine's thread: many programs in each step
    states.py     states that clients keep

A request goes down this list, and events come up. Only scheduler.py and program.py run in the
engine's thread, and nothing else touches a session.
"""
