"""An HTTP server with OpenAI's API, the older ChatGLM contracts and a page for a chat."""
