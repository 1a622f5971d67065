"""OpenAI's API over HTTP, in front of GenAI's continuous batching."""
