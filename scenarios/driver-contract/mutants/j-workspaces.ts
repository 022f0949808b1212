// SPDX-License-Identifier: Apache-2.0

/** Drivers that are wrong about workspaces. */
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";

mutant("EnsureWorkspace fails for a workspace that is there", ["DC-99"], () => {
  const there = new Set<string>();
  return {
    async EnsureWorkspace({ workspace }, pass) {
      if (there.has(workspace)) throw refusal("ALREADY_EXISTS");
      there.add(workspace);
      return pass();
    },
  };
});

mutant("DeleteWorkspace fails for a workspace that is not there", ["DC-100"], () => {
  const there = new Set<string>();
  return {
    EnsureWorkspace({ workspace }, pass) {
      there.add(workspace);
      return pass();
    },
    async DeleteWorkspace({ workspace }, pass) {
      if (!there.delete(workspace)) throw refusal("NOT_FOUND");
      return pass();
    },
  };
});

mutant(
  "CreateSandbox wants any workspace but the default one to be ensured",
  ["DC-29", "DC-31", "DC-101", "DC-130", "DC-142"],
  () => {
    const there = new Set(["default"]);
    return {
      EnsureWorkspace({ workspace }, pass) {
        there.add(workspace);
        return pass();
      },
      async CreateSandbox({ sandbox }, pass) {
        if (sandbox && !there.has(sandbox.workspace)) throw refusal("FAILED_PRECONDITION");
        return pass();
      },
    };
  },
);

mutant("Fails over a workspace without a name", ["DC-102"], {
  async EnsureWorkspace({ workspace }, pass) {
    if (!workspace) throw refusal("INTERNAL");
    return pass();
  },
});

mutant("DeleteWorkspace deletes every sandbox", ["DC-142"], () => {
  let deleted = false;
  return {
    DeleteWorkspace(_, pass) {
      deleted = true;
      return pass();
    },
    async GetSandbox(_, pass) {
      if (deleted) throw refusal("NOT_FOUND");
      return pass();
    },
  };
});
