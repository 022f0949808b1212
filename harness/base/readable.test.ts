// SPDX-License-Identifier: Apache-2.0

import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, rmSync } from "node:fs";
import { readableError } from "./readable.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const TOKEN = ["eyJhbGciOiJFZERTQSJ9", "eyJzdWIiOiJ4In0", "c2lnbmF0dXJl"].join(".");

const thrownBy = (work: () => unknown): unknown => {
  try {
    work();
  } catch (error) {
    return error;
  }
  throw new Error("it threw nothing");
};

test.each<[string, () => unknown]>([
  ["a file that is not there", () => readFileSync(`/nowhere/${TOKEN}`)],
  ["a file that may not be removed", () => rmSync(`/proc/${TOKEN}`)],
  ["a program that is not there", () => Bun.spawnSync([`/nowhere/${TOKEN}`])],
  ["what cannot be cloned", () => structuredClone(() => TOKEN)],
])("an error of the system tells what it told, less the token: %s", (_, work) => {
  const error = readableError(thrownBy(work));
  const [word = ""] = (thrownBy(work) as Error).message.split(/[ :,]/);
  expect(error.message).toStartWith(word);
  expect(Bun.inspect({ ...error, message: error.message, stack: error.stack })).not.toContain(TOKEN);
});

test("an error that nobody may change is told by another one", () => {
  const frozen = Object.freeze(new Error(`no ${TOKEN}`));
  expect(readableError(frozen).message).toBe("no <token>");
});
