# Where a test makes base's allocations fail, the linker redirects them.
if(TARGET test_base_nomem)
  target_link_options(test_base_nomem PRIVATE
    -Wl,--wrap=malloc,--wrap=calloc,--wrap=aligned_alloc,--wrap=strdup)
endif()
if(TARGET test_state_nomem)
  target_link_options(test_state_nomem PRIVATE
    -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc)
endif()

# The C protos are the public ones on the wire.
if(TARGET proto)
  add_test(NAME unit.proto.wire
    COMMAND ${PYTHON3} ${CMAKE_CURRENT_LIST_DIR}/proto/check_wire.py ${PROTO_DIR} ${PROTO_C_DIR})
  set_tests_properties(unit.proto.wire PROPERTIES LABELS unit TIMEOUT 60)
endif()

# The server before a client that shares no line with it: Python's grpcio.
if(TARGET rpc AND TARGET proto_python)
  add_executable(fake_server ${CMAKE_CURRENT_LIST_DIR}/rpc/fake_server.c)
  target_link_libraries(fake_server PRIVATE rpc)
  target_compile_options(fake_server PRIVATE ${STRICT_TESTS})
  add_test(NAME unit.rpc.peer
    COMMAND ${PYTHON3} ${CMAKE_CURRENT_LIST_DIR}/rpc/check_server.py $<TARGET_FILE:fake_server>
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(unit.rpc.peer PROPERTIES LABELS unit TIMEOUT 120
    FAIL_REGULAR_EXPRESSION "LeakSanitizer;runtime error:"
    ENVIRONMENT "PYTHONPATH=${PROTO_PYTHON_DIR};PYTHONDONTWRITEBYTECODE=1;TSAN_OPTIONS=halt_on_error=1:suppressions=${PROJECT_SOURCE_DIR}/tests/race/tsan.supp")
endif()
if(TARGET test_rpc_nomem)
  target_link_options(test_rpc_nomem PRIVATE
    -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc)
endif()
