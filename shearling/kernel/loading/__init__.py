"""How a packed IR is loaded on this machine: its operators unpacked where they would be slower than the runtime's own,
and attention put into the layers of a decoder. And how a prompt becomes tokens, what a document of ONNX Runtime GenAI
can say, and how a text of OpenVINO GenAI is read while it is made.

The build of the wheel `shearling-runtime` takes this folder as it is, so it knows nothing but numpy and OpenVINO.
"""
