# A model held to Hugging Face transformers in float32; see node/golden.h. The
# longest needles, of 32,000 tokens, are left to `godwitd check --golden`, which
# takes minutes on a slow machine, and by a sanitised build those of 9,000, too:
# they only repeat the shorter ones.
if(TARGET godwitd)
  set(golden_dir ${PROJECT_SOURCE_DIR}/tests/golden)
  set(tiny_dir ${PROJECT_SOURCE_DIR}/assets/models/godwit-tiny)
  set(golden_limit 9000)
  if(GODWIT_SANITIZE)
    set(golden_limit 3000)
  endif()
  set(random_models
    qwen3_5_text qwen3_5_moe_text qwen3_next qwen3 qwen3_moe llama)
  foreach(name IN LISTS random_models)
    add_test(NAME golden.${name} COMMAND godwitd check
      --model ${golden_dir}/${name} --golden ${golden_dir}/${name}
      --numerics fp32)
  endforeach()
  # And through a device, which must not change a bit: kernels/apart/apart.h.
  foreach(name IN LISTS random_models)
    list(APPEND apart apart.${name})
    add_test(NAME golden.apart.${name} COMMAND godwitd check --backend apart
      --model ${golden_dir}/${name} --golden ${golden_dir}/${name}
      --numerics fp32)
  endforeach()
  add_test(NAME golden.godwit-tiny COMMAND godwitd check --model ${tiny_dir}
    --golden ${golden_dir}/godwit-tiny --max-length ${golden_limit}
    --numerics fp32)
  # What rounding costs, within the tolerances of node/golden.h. Each numerics
  # and each format has a run with needles of 3,000 tokens, not each pair of them.
  set(far fp32.w8a8 bf16-pair.w8 bf16-tile.bf16)
  foreach(numerics IN ITEMS fp32 bf16-pair bf16-tile)
    foreach(format IN ITEMS bf16 w8 w8a8)
      set(name godwit-tiny.${numerics}.${format})
      list(APPEND rounded ${name})
      set(limit 700)
      if(${numerics}.${format} IN_LIST far)
        set(limit 3000)
      endif()
      add_test(NAME golden.${name} COMMAND godwitd check --model ${tiny_dir}
        --golden ${golden_dir}/godwit-tiny --max-length ${limit}
        --numerics ${numerics} --weight-format ${format})
    endforeach()
  endforeach()
  add_test(NAME golden.tokenizer COMMAND /usr/bin/python3
    ${golden_dir}/check_tokenizer.py $<TARGET_FILE:godwitd> ${tiny_dir}
    ${golden_dir}/tokenizer_cases.json)
  # The judge itself can fail, and says why.
  add_test(NAME golden.judge COMMAND /usr/bin/python3
    ${golden_dir}/check_judge.py $<TARGET_FILE:godwitd> ${golden_dir}
    ${tiny_dir})
  foreach(name IN LISTS random_models apart rounded ITEMS godwit-tiny tokenizer judge)
    set_tests_properties(golden.${name} PROPERTIES LABELS golden TIMEOUT 1800
      FAIL_REGULAR_EXPRESSION "LeakSanitizer;runtime error:")
  endforeach()
endif()
