// SPDX-License-Identifier: Apache-2.0

/** What a terminal shows while a run goes on. */
import { expect, test } from "bun:test";
import { CLEAR, Progress } from "./progress.ts";

/** What stands on a screen after all that was written to it, a line each. */
function shown(written: string): string[] {
  const lines = [""];
  for (const [token] of written.replaceAll(CLEAR, "\r").matchAll(/[\r\n]|[^\r\n]+/g)) {
    if (token === "\n") lines.push("");
    else if (token === "\r") lines[lines.length - 1] = "";
    else lines[lines.length - 1] += token;
  }
  return lines;
}

function started(columns = 80) {
  let written = "";
  let time = 0;
  const screen = { columns, write: (text: string) => (written += text) };
  const progress = new Progress(screen, () => time);
  return {
    progress,
    print: (text: string) => progress.print(text),
    later: (ms: number) => (time += ms),
    screen: () => shown(written),
  };
}

test("the line counts what is done and names what runs, with its time", () => {
  const { progress, later, screen } = started();
  progress.note({ begun: "LC-01" });
  later(1200);
  progress.note({ begun: "LC-02" });
  progress.note({ begun: "LC-03" });
  later(300);
  progress.note({ ended: "LC-02", verdict: "pass" });
  expect(screen()).toEqual(["1 pass · 1.5 s · LC-01 1.5 s, LC-03 300 ms"]);
  progress.note({ ended: "LC-01", verdict: "fail" });
  expect(screen()).toEqual(["1 pass, 1 FAIL · 1.5 s · LC-03 300 ms"]);
  progress.end();
});

test("what is printed stands above the line, also when it comes in pieces", () => {
  const { progress, print, screen } = started();
  progress.note({ begun: "LC-01" });
  print("(pass) LC-");
  expect(screen()).toEqual(["(pass) LC-"]);
  progress.note({ ended: "LC-01", verdict: "pass" });
  print("01\nnext\n");
  expect(screen()).toEqual(["(pass) LC-01", "next", "1 pass · 0 ms"]);
  progress.end();
  expect(screen()).toEqual(["(pass) LC-01", "next", ""]);
});

test("the line is never longer than the terminal is wide", () => {
  const { progress, screen } = started(20);
  for (const id of ["LC-01", "LC-02", "LC-03"]) progress.note({ begun: id });
  expect(screen()[0]).toBe("0 ms · LC-01 0 ms,…");
  progress.end();
});
