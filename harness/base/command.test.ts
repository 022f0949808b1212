// SPDX-License-Identifier: Apache-2.0

import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { asksFor, commandProblem, driverProblem, fillIn, fromHere, words } from "./command.ts";
import type { DriverContext } from "./driver-context.ts";

describe("a command line", () => {
  test.each<[string, string[]]>([
    [`drv --json '{"allow": true}'`, ["drv", "--json", `{"allow": true}`]],
    [`drv --json={"allow":true}`, ["drv", "--json={allow:true}"]],
    [`drv "--json={\\"allow\\": true}"`, ["drv", `--json={"allow": true}`]],
    [`drv --say "it's" 'a "b"'`, ["drv", "--say", "it's", `a "b"`]],
    [`drv 'it'"'"'s' 'it'\\''s'`, ["drv", "it's", "it's"]],
    [`drv pre'two words'post a" b "c`, ["drv", "pretwo wordspost", "a b c"]],
    [`drv '' ""`, ["drv", "", ""]],
    [`drv a\\ b \\' 'c\\d' "e\\\\f" "g\\h"`, ["drv", "a b", "'", "c\\d", "e\\f", "g\\h"]],
    [
      `drv $HOME \${X} $(id) \`id\` ~ *.ts [a-z]? {a,b}`,
      ["drv", "$HOME", "${X}", "$(id)", "`id`", "~", "*.ts", "[a-z]?", "{a,b}"],
    ],
    [`drv a#b #c && d | e > f; g`, ["drv", "a#b", "#c", "&&", "d", "|", "e", ">", "f;", "g"]],
    [`  drv\ta\n b \\\n c  `, ["drv", "a", "b", "c"]],
    [`drv 'naïve 日本'`, ["drv", "naïve 日本"]],
  ])("is split as a shell splits it, and nothing is expanded: %j", (line, expected) => {
    expect(words(line)).toEqual(expected);
    expect(commandProblem(line)).toBe(false);
  });

  test.each([
    [`drv "two words`, "a quote is not closed"],
    [`drv it's`, "a quote is not closed"],
    [`drv a\\`, "nothing follows the backslash at its end"],
    [`'' {socket}`, "it names no program"],
    ["  ", "it names no program"],
  ])("that is no command line is told in one line: %j", (line, problem) => {
    expect(commandProblem(line)).toBe(problem);
    expect(driverProblem(line)).toBe(problem);
  });
});

describe("a driver's command line", () => {
  const context = { socket: "/run/d.sock", state: "/run/state" } as DriverContext;
  test.each<[string, string[]]>([
    [
      `drv {socket} '{"allow": true, "state": "{state}"}'`,
      ["drv", "/run/d.sock", `{"allow": true, "state": "/run/state"}`],
    ],
    [`drv --a={socket},{socket}`, ["drv", "--a=/run/d.sock,/run/d.sock"]],
    [`sh -c 'exec drv "$0" \${HOME} {}' {socket}`, ["sh", "-c", 'exec drv "$0" ${HOME} {}', "/run/d.sock"]],
  ])("has its placeholders filled in, and keeps all other braces: %j", (line, expected) => {
    expect(driverProblem(line)).toBe(false);
    expect(fillIn(words(line), context)).toEqual(expected);
  });

  test("asks for what it has in braces, quoted or not", () => {
    expect(asksFor(`drv '{state}' {socket}`, "state")).toBe(true);
    expect(asksFor(`drv {"state"} {socket}`, "state", "network")).toBe(true);
    expect(asksFor("drv ${state} state", "state")).toBe(false);
    expect(asksFor("", "state")).toBe(false);
  });

  test.each([
    ["my-driver {socket}", "my-driver {socket}"],
    ["'a b/my-driver' {socket}", `'${join(process.cwd(), "a b/my-driver")}' {socket}`],
    [` ../my-driver  {socket} '{"a": 1}'`, `${join(process.cwd(), "..", "my-driver")} {socket} '{"a": 1}'`],
    [`./it\\'s {socket} ''`, `'${join(process.cwd(), `it'\\''s`)}' {socket} ''`],
    ["/bin/my-driver {socket}", "/bin/my-driver {socket}"],
    ["{state}/my-driver {socket}", "{state}/my-driver {socket}"],
  ])("of %j the program is found from anywhere", (line, expected) => {
    expect(fromHere(line)).toBe(expected);
    expect(words(expected).slice(1)).toEqual(words(line).slice(1));
  });
});
