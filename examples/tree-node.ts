/** The specification's example: `tree.TreeNode`, whose children may form cycles, in the steps of its C. */

import { Heap, type Address, type ObjectType } from 'obmalloc'

const heap = new Heap({ release: '3.13' })
const { gc } = heap

// What PyList_New makes: a type with a variable part.
const List = heap.defineType({ name: 'list', items: 'object', gc: true })

const TreeNode: ObjectType = heap.defineType({
  name: 'tree.TreeNode',
  fields: { children: 'object' }, // may create cycles
  gc: true, // Py_TPFLAGS_HAVE_GC
  traverse(self, visit) {
    const children = TreeNode.get(self, 'children') as Address | null
    if (children !== null) visit(children) // Py_VISIT(self->children)
  },
  clear(self) {
    TreeNode.set(self, 'children', null) // Py_CLEAR(self->children)
  },
  dealloc(self) {
    gc.untrack(self) // then the fields are cleared and the memory is given back: tp_free
    console.log('dealloc', TreeNode.name)
  },
})

function newTreeNode(room: number): Address {
  const self = TreeNode.new() // PyObject_GC_New
  try {
    const children = List.newVar(room)
    gc.track(children)
    TreeNode.set(self, 'children', children)
    heap.decref(children) // the node has it now
  } catch (error) {
    heap.decref(self)
    throw error // a MemoryError is PyErr_NoMemory
  }
  gc.track(self) // after initialisation
  return self
}

function adopt(parent: Address, index: number, child: Address): void {
  List.set(TreeNode.get(parent, 'children') as Address, index, child)
}

const [root, leaf] = [newTreeNode(1), newTreeNode(1)]
adopt(root, 0, leaf)
adopt(leaf, 0, root) // a cycle
heap.decref(root)
heap.decref(leaf)
console.log('tracked', gc.getObjects().length) // 4: two nodes and their lists
console.log('collected', gc.collect()) // 4
console.log('blocks left', heap.allocatedBlocks()) // 0
heap.close()
