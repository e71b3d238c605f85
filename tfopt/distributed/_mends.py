"""What Horovod's build puts right in Horovod's source: the file, what is wrong in it, and what should be there."""

# Over Gloo, the list of ranks is reserved, but never has a size: the check for ranks that wait in vain goes through an
# empty list, and neither warns nor ends the job.
_STALLED_RANKS = (
    "horovod/common/gloo/gloo_controller.cc",
    "global_ranks_.reserve(size_);",
    "global_ranks_.resize(size_);",
)

# The connections that all operations use forget the network interface, and take the address that the host's own name
# has there: often 127.0.0.1, where no other machine answers.
_NETWORK_INTERFACE = (
    "horovod/common/gloo/gloo_context.cc",
    "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;",
    "  device_attr.iface = global_context.gloo_iface_;\n"
    "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;",
)

# The thread that receives asks again and again, at full load and in the way of the others, for as long as another one
# sends over the same connection. It now waits for that one to be done, 1 ms at most.
_SPINNING_THREAD = (
    "third_party/gloo/gloo/transport/tcp/pair.cc",
    "  std::unique_lock<std::mutex> lock(m_, std::try_to_lock);\n  if (!lock) {\n    return;\n  }\n",
    "  struct timespec limit;\n  clock_gettime(CLOCK_REALTIME, &limit);\n"
    "  limit.tv_sec += (limit.tv_nsec += 1000000) / 1000000000;\n  limit.tv_nsec %= 1000000000;\n"
    "  if (pthread_mutex_timedlock(m_.native_handle(), &limit) != 0) {\n    return;\n  }\n"
    "  std::unique_lock<std::mutex> lock(m_, std::adopt_lock);\n",
)

# `horovodrun` imports TensorFlow twice, one after the other, to ask what the library was built with. The build knows,
# and now writes it down beside the versions; ranks start at once.
_NOTED_CONTROLLERS = (
    (
        "CMakeLists.txt",
        r'"\"dummy\": \"none\"\n}"',
        r'"\"mpi\": \"${HAVE_MPI}\",\n\"gloo\": \"${HAVE_GLOO}\",\n\"dummy\": \"none\"\n}"',
    ),
    (
        "horovod/common/util.py",
        "@_cache\ndef mpi_built(",
        "def _was_built_with(controller):\n"
        "    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))\n"
        "    with open(os.path.join(folder, 'metadata.json')) as f:\n"
        "        return json.load(f)[controller] == 'TRUE'\n\n\n"
        "@_cache\ndef mpi_built(",
    ),
    *(
        (
            "horovod/common/util.py",
            f"        built_fn = lambda ext: ext.{controller}_built()\n        result = _check_extension_lambda(\n"
            f"            ext_base_name, built_fn, 'built with {name}', verbose)\n",
            f"        result = _was_built_with('{controller}')\n",
        )
        for controller, name in (("mpi", "MPI"), ("gloo", "Gloo"))
    ),
)

# Half of the compilation went into a second Gloo, for C++11, which TensorFlow's part does not link (it takes the one
# for C++17), and into what a debugger reads. The two files that take longest, a third of the rest, came last, when
# nothing was left to be compiled beside them.
_COMPILATION = (
    ("CMakeLists.txt", "add_subdirectory(third_party/gloo)", "add_subdirectory(third_party/gloo EXCLUDE_FROM_ALL)"),
    ("CMakeLists.txt", 'REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_REL', 'REPLACE "-O2 -g" "-O3" CMAKE_CXX_FLAGS_REL'),
    ("horovod/tensorflow/CMakeLists.txt", "SHARED ${SOURCES} ${TF_SOURCES}", "SHARED ${TF_SOURCES} ${SOURCES}"),
)

MENDS = (_STALLED_RANKS, _NETWORK_INTERFACE, _SPINNING_THREAD, *_NOTED_CONTROLLERS, *_COMPILATION)
