"""A server for a model: OpenAI's chat completions over HTTP, both looks of an episode on the server, uploads, and a page.

`errors` and `request` say what a client may send and what it is told; `openai_schema` is the typed body of a chat completion;
`images` and `uploads` turn what was sent into image sources; `completions` answers; `image_routes` serves the page's tiles;
`app` puts the routes together, and `server` runs them until a signal.
"""
