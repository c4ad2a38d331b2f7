/** index.d.ts as the tests read it: all that is exported, with its comments. */

import { readFileSync } from 'node:fs'

import ts from 'typescript'

export const contract = ts.createSourceFile(
  'index.d.ts',
  readFileSync(new URL('../index.d.ts', import.meta.url), 'utf8'),
  ts.ScriptTarget.Latest,
  true,
)

export interface Documented {
  readonly name: string
  readonly node: ts.Node
  /** Its comment without the stars; empty without one. */
  readonly text: string
}

function commentOf(node: ts.Node): string {
  const comments = ts.getJSDocCommentsAndTags(node).filter(ts.isJSDoc)
  return (comments.at(-1)?.getText() ?? '').replace(/^\/\*\*|\*\/$/g, '').replaceAll(/^ *\* ?/gm, '')
}

/** All that is exported, and the members of it; what is private has no words. */
export const documented: Documented[] = contract.statements.flatMap((statement): Documented[] => {
  if (!ts.isClassDeclaration(statement) && !ts.isInterfaceDeclaration(statement)) {
    const isNamed = ts.isTypeAliasDeclaration(statement) || ts.isFunctionDeclaration(statement)
    return isNamed ? [{ name: statement.name!.text, node: statement, text: commentOf(statement) }] : []
  }
  const type = statement.name!.text
  const members = [...statement.members].filter(
    (member) =>
      !ts.canHaveModifiers(member) || !ts.getModifiers(member)?.some(({ kind }) => kind === ts.SyntaxKind.PrivateKeyword),
  )
  return [
    { name: type, node: statement, text: commentOf(statement) },
    ...members.map((node) => ({
      name: `${type}.${node.name?.getText() ?? 'constructor'}`,
      node,
      text: commentOf(node),
    })),
  ]
})
