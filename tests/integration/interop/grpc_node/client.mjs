// gRPC's client for Node against the server at ADDRESS: says what it saw as one line of JSON. Messages are plain bytes.
import grpc from "@grpc/grpc-js";

const same = (bytes) => bytes;
const method = (path, { requests = false, answers = false } = {}) => ({
  path,
  requestStream: requests,
  responseStream: answers,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
});
const Client = grpc.makeGenericClientConstructor({
  once: method("/test.Relay/Once"),
  thrice: method("/test.Relay/Thrice", { answers: true }),
  fail: method("/test.Relay/Fail"),
  failLate: method("/test.Relay/FailLate", { answers: true }),
  silence: method("/test.Relay/Silence"),
  count: method("/test.Interop/Count", { answers: true }),
  metadata: method("/test.Interop/Metadata"),
  both: method("/test.Hosted/Both", { requests: true, answers: true }),
  collect: method("/test.Hosted/Collect", { requests: true }),
});

const options = { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 };
const client = new Client(process.env.ADDRESS, grpc.credentials.createInsecure(), options);

const unary = (name, message, metadata = new grpc.Metadata(), call = {}) =>
  new Promise((resolve) => {
    const seen = {};
    const made = client[name](message, metadata, call, (error, answer) => {
      seen.error = error && [error.code, error.details, error.metadata.getMap()["grpc-status-details-bin"]?.length ?? 0];
      seen.answer = answer;
      setImmediate(() => resolve(seen));
    });
    made.on("metadata", (head) => (seen.head = head));
    made.on("status", (status) => (seen.trailers = status.metadata));
    seen.call = made;
  });

const streamed = (name, message) =>
  new Promise((resolve) => {
    const seen = { messages: [], code: 0 };
    const call = client[name](message);
    call.on("data", (data) => seen.messages.push(data.toString()));
    call.on("error", (error) => (seen.code = error.code));
    call.on("status", (status) => {
      seen.code = status.code;
      setImmediate(() => resolve(seen));
    });
  });

const seen = {};
const text = (name) => Buffer.from(name);

seen.once = (await unary("once", text("hello"))).answer.toString();
const large = Buffer.alloc(4_000_000, "x");
seen.large = (await unary("once", large)).answer.equals(large);
seen.tooLarge = (await unary("once", Buffer.alloc(5_000_000))).error[0];
seen.thrice = (await streamed("thrice", text("a"))).messages;
seen.failLate = await streamed("failLate", text("a"));
seen.fail = (await unary("fail", text("a"))).error;
seen.count = (await streamed("count", text("5000"))).messages.length;
seen.deadline = (await unary("silence", text("a"), undefined, { deadline: Date.now() + 300 })).error[0];
seen.cancelled = await new Promise((resolve) => {
  const call = client.silence(text("a"), (error) => resolve(error.code));
  setTimeout(() => call.cancel(), 100);
});

const metadata = new grpc.Metadata();
metadata.set("x-tenant", "t");
metadata.set("x-bytes-bin", Buffer.from([0, 255, 7]));
const told = await unary("metadata", text(""), metadata);
seen.metadata = JSON.parse(told.answer.toString());
seen.trailer = told.trailers.get("x-last")[0];

const many = await Promise.all(Array.from({ length: 1000 }, (_, n) => unary("once", text(String(n)))));
seen.many = many.every((each, n) => each.answer?.toString() === String(n));

seen.both = await new Promise((resolve) => {
  const messages = [];
  const call = client.both();
  call.on("data", (data) => {
    messages.push(data.toString());
    if (messages.length < 5) call.write(text(`${messages.length}`));
    else call.end();
  });
  call.on("end", () => resolve(messages));
  call.write(text("0"));
});
seen.collect = await new Promise((resolve) => {
  const call = client.collect((error, answer) => resolve(error ? error.code : answer.toString()));
  for (let n = 0; n < 100; n++) call.write(Buffer.alloc(10_000, "x"));
  call.end();
});

const gzip = { "grpc.default_compression_algorithm": 2 };
const compressing = new Client(process.env.ADDRESS, grpc.credentials.createInsecure(), gzip);
seen.compressed = await new Promise((resolve) => {
  compressing.once(Buffer.alloc(10_000, "x"), (error) => resolve(error ? error.code : 0));
});
compressing.close();
client.close();
console.log(JSON.stringify(seen));
