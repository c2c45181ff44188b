// Counts words: the text comes in parts, the answer goes out as server-sent events. Started by web_node.py.
import { createServer } from "node:http";

const server = createServer(async (request, response) => {
  if (request.method !== "POST") return response.writeHead(405, { Allow: "POST" }).end("POST a text\n");
  const counts = new Map();
  let rest = "";
  for await (const chunk of request.setEncoding("utf8")) {
    const words = (rest + chunk).toLowerCase().split(/[^\p{L}]+/u);
    rest = words.pop();
    for (const word of words) if (word) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  if (rest) counts.set(rest, (counts.get(rest) ?? 0) + 1);
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  for (const [word, count] of [...counts].sort((a, b) => b[1] - a[1])) response.write(`data: ${word} ${count}\n\n`);
  response.end();
});
server.listen(Number(process.argv[2]), "0.0.0.0");
