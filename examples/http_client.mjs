// Calls the deployed app of http_service.py from Node.js 18 or newer, without packages.
// Needs SQUALL_SERVER_URL and SQUALL_TOKEN.
import { randomUUID } from "node:crypto";

const server = process.env.SQUALL_SERVER_URL;
const headers = { Authorization: `Bearer ${process.env.SQUALL_TOKEN}`, "Content-Type": "application/json" };

class SquallError extends Error {
  constructor(error) {
    super(`${error.code}: ${error.message}`);
    Object.assign(this, error); // code, fix, retryable, data: {call, type, traceback, ...}
  }
}

async function request(path, body, more = {}) {
  const method = body === undefined ? "GET" : "POST";
  const answer = await fetch(server + path, {
    method, headers: { ...headers, ...more }, body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!answer.ok) throw new SquallError((await answer.json()).error);
  return answer;
}

const route = (name, form) => `/v1/apps/http-service/functions/${name}/${form}`;

// The result of a call; while there is none the answer is 202 and says where to ask again.
async function call(name, body) {
  let told = await (await request(route(name, "call"), body)).json();
  while (told.output) told = await (await request(`${told.output}?wait=55`)).json();
  return told.result;
}

// Lines of JSON as they come; an empty one only says that the connection lives.
async function* lines(answer) {
  let text = "";
  for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
    const parts = (text + chunk).split("\n");
    text = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

console.log(await call("total", { args: [[1.5, 2.5]], kwargs: { discount: 0.5 } }));
console.log(await call("Greeter.greet", { args: ["Ada"], parameters: { language: "de" } }));

for await (const line of lines(await request(route("countdown", "call"), { args: [3] }))) {
  if (line.error) throw new SquallError(line.error);
  if (line.item) console.log(line.item);
}

const inputs = [["Ada"], [""], ["Grace"]];
for await (const line of lines(await request(route("Greeter.greet", "map"), { inputs }))) {
  if ("index" in line) console.log(inputs[line.index][0], "->", line.result ?? line.error.message);
}

const spawned = await (await request(route("total", "spawn"), { args: [[10, 20]] }, { "Idempotency-Key": randomUUID() })).json();
console.log((await (await request(`${spawned.output}?wait=30`)).json()).result);

try {
  await call("Greeter.greet", { args: [""] });
} catch (error) {
  console.log(error.code, error.data.type, error.data.traceback.includes("nobody to greet"));
}
