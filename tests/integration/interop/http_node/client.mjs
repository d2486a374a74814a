// Speaks to the endpoint at BASE_URL with OpenAI's client for Node, and prints what it saw as one line of JSON.

import OpenAI from "openai";

const { BASE_URL: baseURL, API_KEY: apiKey, MODEL: model } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hi" }];
const seen = {};

const whole = await client.chat.completions.create({ model, messages, max_tokens: 5 });
seen.whole = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens];

async function streamed(text) {
  const stream = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: text }],
    stream: true,
    stream_options: { include_usage: true },
  });
  const texts = [];
  let usage = null;
  for await (const chunk of stream) {
    texts.push(chunk.choices[0]?.delta.content ?? "");
    usage = chunk.usage ?? usage;
  }
  return [texts.join(""), usage.total_tokens];
}

seen.streamed = await streamed("Hi");
seen.many = await Promise.all(Array.from({ length: 50 }, (_, index) => streamed(`number ${index}`)));

const plain = await client.completions.create({ model, prompt: "Once", stream: true });
seen.plain = "";
for await (const chunk of plain) seen.plain += chunk.choices[0].text;

seen.models = [];
for await (const each of client.models.list()) seen.models.push(each.id);

async function refusal(ask) {
  try {
    await ask();
    return null;
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
}

const stranger = new OpenAI({ baseURL, apiKey: "fl-abcdefghijklmnop-no", maxRetries: 0 });
seen.stranger = await refusal(() => stranger.chat.completions.create({ model, messages }));
seen.unknown = await refusal(() => client.chat.completions.create({ model: "none", messages }));
seen.large = await refusal(() =>
  client.chat.completions.create({ model, messages: [{ role: "user", content: "x".repeat(3_000_000) }] }),
);

const endless = await client.chat.completions.create({ model, messages: [{ role: "user", content: "endless" }], stream: true });
seen.left = "";
for await (const chunk of endless) {
  seen.left += chunk.choices[0].delta.content;
  if (seen.left.length >= 3) break; // the client cancels the request
}

console.log(JSON.stringify(seen));
