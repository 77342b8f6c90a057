// Sends what stands on stdin with Inngest's SDK, as an engine does. stdin: a JSON list of calls,
// each what `inngest.send` is given. stdout: per call one line, its ids or the error's message.
import { readFileSync } from "node:fs";
import { Inngest } from "inngest";

const quiet = { info() {}, warn() {}, error() {}, debug() {} };
const inngest = new Inngest({ id: "engine", logger: quiet });

for (const payload of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    console.log(JSON.stringify(await inngest.send(payload)));
  } catch (error) {
    console.log(JSON.stringify({ error: error.message }));
  }
}
