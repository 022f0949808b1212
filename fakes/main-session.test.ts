// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "bun:test";
import { DetachKeys, KEPT_BYTES, type MainEvent, MainSession } from "./supervisor/main-session.ts";

const nobody = { write() {}, resize() {}, signal() {} };
const printed = (text: string): MainEvent => ({ stream: "stdout", data: Buffer.from(text) });
const textOf = (events: MainEvent[]) =>
  events.map((event) => ("data" in event ? String(event.data) : `exit ${event.exit}`)).join("");

test("who attaches gets what was printed before, then what is printed, until he leaves", () => {
  const session = new MainSession(nobody);
  session.publish(printed("one "));
  const seen: MainEvent[] = [];
  const leave = session.attach((event) => seen.push(event));
  session.publish(printed("two "));
  leave();
  session.publish({ exit: 7 });
  expect(textOf(seen)).toBe("one two ");
  const late: MainEvent[] = [];
  session.attach((event) => late.push(event));
  expect(textOf(late)).toBe("one two exit 7");
});

test("of a long output the last part is kept, in whole pieces", () => {
  const session = new MainSession(nobody);
  const half = "x".repeat(KEPT_BYTES / 2);
  for (const text of ["old", half, half]) session.publish(printed(text));
  const seen: MainEvent[] = [];
  session.attach((event) => seen.push(event));
  expect(textOf(seen)).toBe(half + half);
});

test("one at a time has the input, and gives it back once", () => {
  const session = new MainSession(nobody);
  const giveBack = session.takeInput()!;
  expect(session.takeInput()).toBeUndefined();
  giveBack();
  const next = session.takeInput();
  expect(next).toBeDefined();
  giveBack();
  expect(session.takeInput()).toBeUndefined();
});

test.each([
  ["in one piece", ["ab\x10\x11cd"], "ab", true],
  ["in two", ["ab\x10", "\x11"], "ab", true],
  ["not at all", ["ab\x10", "cd\x11"], "ab\x10cd\x11", false],
  ["after a Ctrl-P too many", ["\x10\x10\x11"], "\x10", true],
])("Ctrl-P Ctrl-Q detaches: %s", (_, pieces, forwarded, detached) => {
  const keys = new DetachKeys();
  const read = pieces.map((piece) => keys.read(Buffer.from(piece)));
  expect(read.map(({ forward }) => Buffer.from(forward).toString()).join("")).toBe(forwarded);
  expect(read.some(({ detach }) => detach)).toBe(detached);
});
