// SPDX-License-Identifier: Apache-2.0

/** What is refused as no message, in prost's words. */
import { expect, test } from "bun:test";
import { computeDriver } from "./contract.ts";

const { GetSandbox, ListSandboxes } = computeDriver().ComputeDriver.service;

/** What came of reading those bytes as a GetSandboxResponse. */
function read(...bytes: number[]): string {
  try {
    return JSON.stringify(GetSandbox.responseDeserialize(Buffer.from(bytes)));
  } catch (error) {
    return (error as Error).message.replace("failed to decode Protobuf message: ", "");
  }
}

const IN_NAME = "DriverSandbox.name: GetSandboxResponse.sandbox";
const A_STRING = "is not UTF-8 encoded";

test.each<[string, number[], string]>([
  [
    "a byte that begins nothing",
    [0x0a, 3, 0x12, 1, 0xff],
    `${IN_NAME}: invalid string value: data ${A_STRING}`,
  ],
  ["half a character", [0x0a, 4, 0x12, 2, 0x61, 0xc3], `${IN_NAME}: invalid string value: data ${A_STRING}`],
  ["a surrogate", [0x0a, 5, 0x12, 3, 0xed, 0xa0, 0x80], `${IN_NAME}: invalid string value: data ${A_STRING}`],
  ["a long form", [0x0a, 4, 0x12, 2, 0xc0, 0x80], `${IN_NAME}: invalid string value: data ${A_STRING}`],
  [
    "a number for a text",
    [0x0a, 2, 0x10, 1],
    `${IN_NAME}: invalid wire type: Varint (expected LengthDelimited)`,
  ],
  ["a text that ends too early", [0x0a, 3, 0x12, 9, 0x61], `${IN_NAME}: buffer underflow`],
  [
    "a text longer than its message",
    [0x0a, 2, 0x12, 1, 0x61],
    "GetSandboxResponse.sandbox: delimited length exceeded",
  ],
  ["a message that ends too early", [0x0a, 9, 0x12], "GetSandboxResponse.sandbox: buffer underflow"],
  ["a number without end", [0x0a, 0xff], "GetSandboxResponse.sandbox: invalid varint"],
  ["a number of over 64 bits", [...Array<number>(10).fill(0xff), 2], "invalid varint"],
  ["a field number of over 29 bits", [0xff, 0xff, 0xff, 0xff, 0x7f], "invalid key value: 34359738367"],
  ["the field number 0", [0x00, 1], "invalid tag value: 0"],
  ["a wire type that there is not", [0x0e], "invalid wire type value: 6"],
  ["an end of no group", [0x7c], "unexpected end group tag"],
  ["the end of another group", [0x7b, 0x84, 0x01], "unexpected end group tag"],
  ["an unknown field that ends too early", [0x79, 1, 2], "buffer underflow"],
])("%s is refused", (_, bytes, problem) => expect(read(...bytes)).toBe(problem));

test("what a later version of the contract may add is read over: numbers, texts that are none, groups", () => {
  const unknown = [
    0x78, 1, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7a, 1, 0xff, 0x7b, 0x78, 1, 0x7c, 0x7d, 1, 2, 3, 4,
  ];
  expect(read(...unknown)).toBe(JSON.stringify({ sandbox: null }));
});

test("every character is read as it was written, of short texts and of long ones", () => {
  for (const name of ["", "ü", "\u{1f980}", "\ufffd", "x".repeat(100), `${"x".repeat(100)}\ufffd\u{1f980}`]) {
    const message = ListSandboxes.responseSerialize({ sandboxes: [{ name }] });
    expect(ListSandboxes.responseDeserialize(message).sandboxes[0]!.name).toBe(name);
  }
});

test("messages in one another are read to prost's depth, and no deeper", () => {
  // A group, which is skipped, in so many others.
  const groups = (depth: number) => [...Array<number>(depth).fill(0x7b), ...Array<number>(depth).fill(0x7c)];
  expect(read(...groups(100))).toBe(JSON.stringify({ sandbox: null }));
  expect(read(...groups(101))).toBe("recursion limit reached");
});
